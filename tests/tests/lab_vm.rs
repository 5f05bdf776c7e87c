//! A backend that is a virtual machine with a kernel of its own. No balancer here, packets go by plain routing.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use ebb_tests::{
    client::Connection,
    lab::{
        Answers, Lab, LabOptions, Topology, VmBackend, VmOptions,
        address::{self, Family},
    },
    scenario::can_run,
};

const PORT: u16 = 8080;
const LIMIT: Duration = Duration::from_secs(20);

/// Who answers a client's request of many segments.
fn ask(lab: &Lab, target: SocketAddr) -> Result<String> {
    lab.netns("client").block_on(|| async move {
        let mut connection = Connection::open(None, target, LIMIT).await?;
        let answer = connection.get_bytes(100_000, 7, false).await?;
        anyhow::Ok(answer.backend.to_string())
    })?
}

#[test]
fn a_virtual_machine_serves_on_its_addresses_and_the_vips() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let options = LabOptions::new(Topology::OneArm, Answers::Direct, &["b1"]);
    let lab = Lab::create(options)?;
    let mut vm = VmBackend::boot(&lab, VmOptions::new("vm", 1))?;
    eprintln!("the machine runs Linux {}", vm.machine().kernel());
    let own = Family::BOTH.map(|family| SocketAddr::new(vm.address(family), PORT));
    let vips = Family::BOTH.map(|family| SocketAddr::new(address::vip(family), PORT));
    // Nobody listens yet.
    assert!(ask(&lab, own[0]).is_err());
    vm.serve(&[own, vips].concat())?;
    for target in own {
        assert_eq!(ask(&lab, target)?, "vm", "{target}");
    }
    // The router leads the VIPs to the balancer, of which there is none.
    for (family, target) in Family::BOTH.into_iter().zip(vips) {
        let (vip, via) = (address::vip(family), vm.address(family));
        let route = format!("{vip}/{}", family.bits());
        let changed = lab
            .command("router", "ip")
            .args(["route", "replace", &route, "via", &via.to_string()])
            .status()?;
        assert!(changed.success());
        assert_eq!(ask(&lab, target)?, "vm", "{target}");
    }
    Ok(())
}

#[test]
fn a_virtual_machine_has_the_kernels_own_tunnels() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let options = LabOptions::new(Topology::OneArm, Answers::Direct, &["b1"]);
    let lab = Lab::create(options)?;
    let mut vm = VmBackend::boot(&lab, VmOptions::new("vm", 1))?;
    let [v4, v6] = Family::BOTH.map(|family| (vm.address(family), address::lb(family)));
    vm.ip(&format!(
        "link add in4 type ipip local {} remote {} mode any\n\
         link add in6 type ip6tnl local {} remote {} mode any\n\
         fou add port 6080 gue\n\
         link set in4 up\n\
         link set in6 up\n",
        v4.0, v4.1, v6.0, v6.1
    ))?;
    let links = vm.machine().output(&["ip", "-d", "link"], "")?;
    assert!(
        links.contains("ipip any") && links.contains("ip6tnl"),
        "{links}"
    );
    assert!(vm.ip("link add g1 type no-such-kind\n").is_err());
    // Its segment has it no more when it is off.
    drop(vm);
    let tap = lab
        .command("router", "ip")
        .args(["link", "show", "vm"])
        .output()?;
    assert!(!tap.status.success());
    Ok(())
}
