//! Commands that wait for the engine: a look at large flow tables gives way to them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// How long looks may give way before one is done to its end, milliseconds. What follows from looks (ends of drains,
/// ids freed) must not wait for ever for whoever gives one command after the other.
pub const PATIENCE_MS: u64 = 1_000;

/// How many commands wait. All copies count together.
#[derive(Debug, Clone, Default)]
pub struct Pressing(Arc<AtomicUsize>);

impl Pressing {
    /// A command waits, until what this returns is dropped.
    pub fn press(&self) -> Pressed {
        self.0.fetch_add(1, Ordering::Relaxed);
        Pressed(self.clone())
    }

    /// Whether any waits. It is asked often; to learn of a command a little later does no harm.
    pub fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

/// A command that waits.
#[derive(Debug)]
pub struct Pressed(Pressing);

impl Drop for Pressed {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_presses_until_the_last_one_is_dropped() {
        let pressing = Pressing::default();
        let (first, second) = (pressing.press(), pressing.clone().press());
        drop(first);
        assert!(pressing.any());
        drop(second);
        assert!(!pressing.any());
    }
}
