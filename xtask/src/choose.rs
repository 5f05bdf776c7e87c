//! Which eBPF toolchain to complete, and how its linker is built: the decisions of `setup`, without carrying them out.

use crate::{apt::Family, ebpf::Way};

/// What is known about a machine that lacks a complete toolchain.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// The distribution's compiler makes BPF objects already.
    pub distribution: bool,
    /// rustup's nightly does.
    pub nightly: bool,
    /// Packages that can be installed.
    pub family: Option<Family>,
    /// rustup is there.
    pub rustup: bool,
}

/// What to install.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Only the linker, for the compiler of this way.
    Linker(Way),
    /// The distribution's packages, then the linker.
    Packages(Family),
    /// rustup's nightly with rust-src, then the linker.
    Rustup,
}

/// Chooses what to install; `None` when neither way is open.
///
/// A compiler that is there comes first, then the distribution's packages: they bring the LLVM that the linker needs,
/// which a nightly from rustup does not.
pub fn plan(facts: Facts) -> Option<Plan> {
    if facts.distribution {
        return Some(Plan::Linker(Way::Distribution));
    }
    if let Some(family) = facts.family {
        return Some(Plan::Packages(family));
    }
    if facts.nightly {
        return Some(Plan::Linker(Way::Nightly));
    }
    facts.rustup.then_some(Plan::Rustup)
}

/// Releases of bpf-linker known to build, and the versions of LLVM that they can be built for.
pub const LINKER: &str = "^0.13";
const LLVMS: std::ops::RangeInclusive<u32> = 21..=23;

/// Versions of LLVM to build the linker for, best first: the compiler's own, then newer ones, which read its bitcode too.
pub fn llvms(compiler: u32) -> impl Iterator<Item = u32> {
    LLVMS.filter(move |llvm| *llvm >= compiler)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAMILY: Family = Family {
        rustc: "rustc-web",
        cargo: "cargo-web",
        core: "core",
    };
    const BARE: Facts = Facts {
        distribution: false,
        nightly: false,
        family: None,
        rustup: false,
    };

    #[test]
    fn a_compiler_that_is_there_needs_only_a_linker() {
        let facts = Facts {
            distribution: true,
            nightly: true,
            family: Some(FAMILY),
            rustup: true,
        };
        assert_eq!(plan(facts), Some(Plan::Linker(Way::Distribution)));
        let facts = Facts {
            distribution: false,
            family: None,
            ..facts
        };
        assert_eq!(plan(facts), Some(Plan::Linker(Way::Nightly)));
    }

    #[test]
    fn packages_come_before_rustup() {
        let facts = Facts {
            family: Some(FAMILY),
            rustup: true,
            ..BARE
        };
        assert_eq!(plan(facts), Some(Plan::Packages(FAMILY)));
        let facts = Facts {
            family: None,
            ..facts
        };
        assert_eq!(plan(facts), Some(Plan::Rustup));
    }

    #[test]
    fn a_bare_machine_has_no_way() {
        assert_eq!(plan(BARE), None);
    }

    #[test]
    fn an_older_llvm_is_never_chosen() {
        assert_eq!(llvms(22).collect::<Vec<_>>(), [22, 23]);
        assert_eq!(llvms(20).next(), Some(21));
        assert_eq!(llvms(99).next(), None);
    }
}
