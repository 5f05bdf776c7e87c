//! What became of a packet: exactly one outcome each, counted per service.

macro_rules! outcomes {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal,)*) => {
        /// What became of a packet. The order is part of the map layout.
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Outcome { $($(#[doc = $doc])* $name,)* }

        impl Outcome {
            /// Every outcome, in the order of its counter.
            pub const ALL: &'static [Outcome] = &[$(Outcome::$name,)*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// Its name in metrics and JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Outcome::$name => $text,)* }
            }
        }
    };
}

outcomes! {
    /// Not IPv4 or IPv6; to the kernel.
    PassNotIp = "pass_not_ip",
    /// A header ends before its length; to the kernel.
    PassTruncated = "pass_truncated",
    /// A header contradicts itself; to the kernel.
    PassMalformed = "pass_malformed",
    /// A fragment that is not known to belong to a service; to the kernel.
    PassFragment = "pass_fragment",
    /// A later fragment to a service whose first one has not been seen; to the kernel.
    PassFragmentEarly = "pass_fragment_early",
    /// A first fragment to a service that ends inside the transport header, or a later one that begins there (RFC 1858);
    /// to the kernel.
    PassFragmentTiny = "pass_fragment_tiny",
    /// A protocol that no service can have; to the kernel.
    PassProtocol = "pass_protocol",
    /// To no service and from no backend; to the kernel.
    PassNoService = "pass_no_service",
    /// A map that must have an entry had none; to the kernel. Never seen in a sound node.
    PassInternal = "pass_internal",
    /// From a backend to an address that the node does not forward to (its own, or forwarding is off); to the kernel.
    PassReplyLocal = "pass_reply_local",
    /// ICMP that is neither an echo request that ebb answers nor an error about a flow of a service; to the kernel.
    PassIcmp = "pass_icmp",
    /// To the owner of an unmoved slot.
    ForwardSteady = "forward_steady",
    /// To the backend of its flow entry.
    ForwardFlow = "forward_flow",
    /// To the backend that its handshake began on.
    ForwardHandshake = "forward_handshake",
    /// To the base of a moved slot, and entered into the flow table.
    ForwardAdopted = "forward_adopted",
    /// To the base of a slot, without an entry: none is wanted there.
    ForwardBase = "forward_base",
    /// Its backend has ended: to the current one, which will reset it.
    ForwardOrphan = "forward_orphan",
    /// Opens a flow on the current backend.
    ForwardOpening = "forward_opening",
    /// Opens a flow that could not be recorded, in an unmoved slot, where it needs no record.
    ForwardOpeningUnrecorded = "forward_opening_unrecorded",
    /// Opens a flow again: a retransmission, to where the first one went.
    ForwardRetransmit = "forward_retransmit",
    /// To the backend that its QUIC connection id names.
    ForwardServerId = "forward_server_id",
    /// A QUIC packet whose connection id ought to name a backend and does not: by its flow entry, or as a new flow.
    ForwardServerUnknown = "forward_server_unknown",
    /// Opens a flow (or again), without the option that would name its client: there was no room for it.
    ForwardOptionless = "forward_optionless",
    /// To the base of a moved slot, or to whoever else may have its flow, through a tunnel whose end is asked (but with
    /// fragments, IP options and extension headers) to send it back where it has no such connection.
    ForwardAsking = "forward_asking",
    /// To another backend that its slot names than the base: one that has no such connection has sent it back, or nothing is
    /// known of it while the base's flows are cut at a deadline.
    ForwardSecondChance = "forward_second_chance",
    /// A backend's answer, to the client.
    ForwardReply = "forward_reply",
    /// A backend's answer, rewritten and given to the kernel, which knows no neighbour yet.
    ForwardReplyKernel = "forward_reply_kernel",
    /// An ICMP error about a flow, to the flow's backend.
    ForwardIcmp = "forward_icmp",
    /// An ICMP error about a flow, from the backends' side to the client.
    ForwardIcmpReply = "forward_icmp_reply",
    /// A later fragment, to where its first one went: a backend or, of an answer, the client.
    ForwardFragment = "forward_fragment",
    /// An echo request to a service's address: answered.
    AnswerEcho = "answer_echo",
    /// A later fragment to a service whose first one has not been seen: dropped.
    DropFragmentEarly = "drop_fragment_early",
    /// Its client's prefix is denied.
    DropClient = "drop_client",
    /// More flows would begin than the core or the service may let begin; the client tries again.
    DropFlowLimit = "drop_flow_limit",
    /// No backend takes new flows.
    DropNoBackend = "drop_no_backend",
    /// The backend's link-layer address is not known.
    DropNoNextHop = "drop_no_next_hop",
    /// Of a `full-nat` service: every port of the node that its flow could have towards the backend is taken.
    DropNoPort = "drop_no_port",
    /// The time to live is used up.
    DropTtl = "drop_ttl",
    /// An opening that must be recorded and could not be; the client sends it again.
    DropOpeningUnrecorded = "drop_opening_unrecorded",
    /// The deadline of its backend's drain has passed: dropped.
    DropDeadline = "drop_deadline",
    /// The deadline of its backend's drain has passed: answered with a reset.
    ResetDeadline = "reset_deadline",
    /// No reset could be made of it (no acknowledgement to take the sequence number from): dropped.
    DropNoReset = "drop_no_reset",
    /// Does not fit the tunnel to its backend: dropped, and the client told the size that does.
    AnswerTooBig = "answer_too_big",
    /// Does not fit the tunnel to its backend, and can not be answered (or not now): dropped.
    DropTooBig = "drop_too_big",
    /// The driver leaves no room in front of the frame for what has to go there.
    DropNoHeadroom = "drop_no_headroom",
    /// A backend's reset of a flow that may be another backend's: withheld, its client's next packet goes to that one.
    DropSecondChance = "drop_second_chance",
    /// Its backend has died: answered with a reset.
    ResetDead = "reset_dead",
    /// A first fragment that needs an identification of its own: all that there are may still be in use.
    DropNoIdentification = "drop_no_identification",
    /// To the base of a moved slot, without the entry that is wanted there: adoptions are at their limit, or its bucket is
    /// full. Its flow lives, and no look at the tables sees it.
    ForwardUnlisted = "forward_unlisted",
    /// As `ForwardAsking`, without the entry that is wanted there, as `ForwardUnlisted`.
    ForwardAskingUnlisted = "forward_asking_unlisted",
    /// Of a `full-nat` service: begins a flow, on the port of one that was not confirmed yet, as every port that it could have is
    /// taken.
    ForwardDisplacing = "forward_displacing",
}

impl Outcome {
    /// The one whose counter has this number.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Option<Outcome> {
        if number as usize >= Self::COUNT {
            return None;
        }
        // SAFETY: numbered from 0 on, without a gap.
        Some(unsafe { core::mem::transmute::<u32, Outcome>(number) })
    }

    /// Whether the packet went on to a backend or a client.
    pub const fn is_forward(self) -> bool {
        let is_of_the_first = self as u32 >= Outcome::ForwardSteady as u32
            && self as u32 <= Outcome::ForwardFragment as u32;
        let is_of_the_last = self as u32 >= Outcome::ForwardUnlisted as u32
            && self as u32 <= Outcome::ForwardDisplacing as u32;
        is_of_the_first || is_of_the_last
    }

    /// Whether the packet goes through a tunnel whose end is asked (but with fragments, IP options and extension headers).
    #[inline(always)]
    pub const fn asks(self) -> bool {
        self as u32 == Outcome::ForwardAsking as u32
            || self as u32 == Outcome::ForwardAskingUnlisted as u32
    }
}
