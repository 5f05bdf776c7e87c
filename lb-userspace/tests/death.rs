//! What becomes of a dead backend's flows: the rule, and the flags that the data plane gets.

mod common;

use lb_common::abi::backend_flags::{CUT_DROP, CUT_RESET, DEAD, ENDED, VALID};
use lb_userspace::model::{
    death,
    drain::{Admin, Drained, Reason},
    observed::{Observed, Silence},
    spec::{BackendSpec, OnDeath, Protocol},
    state::{Op, Origin, Service, Share, State},
};

const OTHERS: &[u32] = &[2, 3];

/// A service of three backends of which these take new flows, and these are dead.
fn world(current: &[u32], dead: &[u32]) -> (Service, Observed) {
    let mut state = State::default();
    let spec = common::service("web", true);
    state.apply(&Op::ServiceAdded {
        id: 1,
        slots: 1009,
        spec: Box::new(spec),
        at_ms: 0,
    });
    for id in 1..=3 {
        state.apply(&Op::BackendAdded {
            service: "web".to_owned(),
            id,
            name: format!("b{id}"),
            pool: "blue".to_owned(),
            spec: BackendSpec {
                address: format!("10.0.0.{id}:80").parse().unwrap(),
                weight: 1,
                server_id: None,
            },
            origin: Origin::Config,
        });
    }
    let mut service = Service::clone(&state.services["web"]);
    let share = |id: &u32| Share {
        backend: *id,
        weight: 1,
    };
    service.current = current.iter().map(share).collect();
    let mut observed = Observed::default();
    for id in dead {
        let silence = Silence {
            since_ms: 0,
            dead: true,
        };
        observed.silence.insert(*id, silence);
    }
    (service, observed)
}

#[test]
fn flows_are_taken_from_the_dead_while_others_live() {
    #[rustfmt::skip]
    let rows: [(&str, &[u32], &[u32], bool); 6] = [
        ("alive", OTHERS, &[], false),
        ("dead", OTHERS, &[1], true),
        ("another as well", OTHERS, &[1, 2], true),
        ("all", OTHERS, &[1, 2, 3], false),
        ("takes new flows for want of a better", &[1, 2], &[1], false),
        ("nobody takes new flows", &[], &[1], false),
    ];
    for (what, current, dead, expected) in rows {
        let (service, observed) = world(current, dead);
        assert_eq!(death::has_died(&service, &observed, 1), expected, "{what}");
    }
    let (mut service, mut observed) = world(OTHERS, &[1]);
    service.spec.on_death = OnDeath::Leave;
    assert!(!death::has_died(&service, &observed, 1), "to be left");
    service.spec.on_death = OnDeath::Reset;
    let mut put_aside = service.clone();
    put_aside.backends.get_mut(&1).unwrap().admin = Admin::Maintenance;
    assert!(!death::has_died(&put_aside, &observed, 1), "worked on");
    let silence = Silence {
        since_ms: 0,
        dead: false,
    };
    observed.silence.insert(1, silence);
    assert!(!death::has_died(&service, &observed, 1), "silent for now");
}

#[test]
fn flags_say_what_is_done() {
    let drained = |reason| {
        Admin::Drained(Drained {
            id: 1,
            by: Default::default(),
            reason,
            ended_ms: 0,
            flows_go_on: false,
            maintained: false,
        })
    };
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    #[rustfmt::skip]
    let rows = [
        (OnDeath::Reset, tcp, Admin::Active, VALID, VALID | CUT_RESET | DEAD),
        (OnDeath::Reset, tcp, Admin::Active, VALID | CUT_DROP, VALID | CUT_RESET | DEAD),
        (OnDeath::Reset, udp, Admin::Active, VALID, VALID | ENDED),
        (OnDeath::Resteer, tcp, Admin::Active, VALID, VALID | ENDED),
        (OnDeath::Leave, tcp, Admin::Active, VALID, VALID),
        (OnDeath::Reset, tcp, drained(Reason::Died), VALID | ENDED, VALID | CUT_RESET | DEAD),
        (OnDeath::Reset, tcp, drained(Reason::Empty), VALID | ENDED, VALID | ENDED),
        (OnDeath::Reset, tcp, Admin::Removed, VALID | ENDED, VALID | ENDED),
    ];
    for (on_death, protocol, admin, before, after) in rows {
        let (mut service, observed) = world(OTHERS, &[1]);
        service.spec.on_death = on_death;
        service.spec.listen.protocol = protocol;
        let mut backend = service.backends[&1].clone();
        backend.admin = admin.clone();
        let found = death::flags(before, &service, &observed, 1, &backend);
        assert_eq!(found, after, "{on_death:?} {protocol:?} {admin:?}");
    }
}
