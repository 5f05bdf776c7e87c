//! What a target's checks together say that it asks for. Pure.

use super::probe::Says;
use crate::model::{health::Check, speech::Wish};

/// Something to be passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// What it asks for from now on, where that is new.
    pub wish: Option<Wish>,
    /// Words that were not understood, in one text; empty where all were.
    pub not_understood: String,
}

/// What one check has heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Ear {
    /// Nothing yet.
    #[default]
    Deaf,
    /// An answer that asks for nothing in particular.
    Heard,
    /// A wish.
    Wish(Wish),
}

/// A target's voice: who asks for a drain with one check asks for it, and who no longer does must say so with all.
#[derive(Debug, Clone, Default)]
pub struct Voice {
    ears: [Ear; 4],
    /// Answers in a row, by check, that do not ask for a drain.
    ready: [u32; 4],
    told: Option<Wish>,
}

impl Voice {
    /// Takes in what the answer to `check` says. `rise`: answers of an HTTP check in a row that are needed to believe that
    /// no drain is asked for any more; `checks`: all those that are heard.
    pub fn take_in(
        &mut self,
        check: Check,
        says: Option<Says>,
        rise: u32,
        checks: &[Check],
    ) -> Option<Said> {
        let mut not_understood = String::new();
        let place = check as usize;
        match says? {
            Says::Wish(Wish::Drain) => {
                self.ready[place] = 0;
                self.ears[place] = Ear::Wish(Wish::Drain);
            }
            // No word at all is weaker than a word, and may come from another process at the same address.
            Says::Wish(Wish::Ready) => {
                self.ready[place] = self.ready[place].saturating_add(1);
                if self.ready[place] >= rise {
                    self.ears[place] = Ear::Wish(Wish::Ready);
                }
            }
            Says::Line(line) => {
                not_understood = line.unknown.join(" ");
                self.ears[place] = match (line.wish, self.ears[place]) {
                    (Some(wish), _) => Ear::Wish(wish),
                    (None, Ear::Deaf) => Ear::Heard,
                    (None, before) => before,
                };
            }
        }
        let wish = self
            .together(checks)
            .filter(|wish| self.told != Some(*wish));
        if wish.is_none() && not_understood.is_empty() {
            return None;
        }
        self.told = wish.or(self.told);
        Some(Said {
            wish,
            not_understood,
        })
    }

    /// What all checks together say; `None` while that is not known.
    fn together(&self, checks: &[Check]) -> Option<Wish> {
        let ears = || checks.iter().map(|check| self.ears[*check as usize]);
        if ears().any(|ear| ear == Ear::Wish(Wish::Drain)) {
            return Some(Wish::Drain);
        }
        if ears().any(|ear| ear == Ear::Deaf) {
            return None;
        }
        ears()
            .any(|ear| ear == Ear::Wish(Wish::Ready))
            .then_some(Wish::Ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::speech::line;

    const HTTP: Check = Check::Readiness;
    const AGENT: Check = Check::Agent;

    fn wish(voice: &mut Voice, check: Check, says: Says, checks: &[Check]) -> Option<Wish> {
        voice.take_in(check, Some(says), 2, checks)?.wish
    }

    fn says(text: &str) -> Says {
        Says::Line(line(text.as_bytes()))
    }

    #[test]
    fn a_drain_is_believed_at_once_and_its_end_after_some_answers() {
        let mut voice = Voice::default();
        let mut hear = |wished| wish(&mut voice, HTTP, Says::Wish(wished), &[HTTP]);
        let (drain, ready) = (Wish::Drain, Wish::Ready);
        assert_eq!(hear(ready), None);
        assert_eq!(hear(ready), Some(ready));
        assert_eq!(hear(ready), None, "told already");
        assert_eq!(hear(drain), Some(drain));
        assert_eq!(hear(ready), None);
        assert_eq!(hear(drain), None);
        assert_eq!(hear(ready), None);
        assert_eq!(hear(ready), Some(ready));
    }

    #[test]
    fn a_check_that_failed_says_nothing() {
        let mut voice = Voice::default();
        let asked = wish(&mut voice, HTTP, Says::Wish(Wish::Drain), &[HTTP]);
        assert_eq!(asked, Some(Wish::Drain));
        assert_eq!(voice.take_in(HTTP, None, 1, &[HTTP]), None);
    }

    #[test]
    fn two_checks_agree_before_a_drain_is_over() {
        let both = [HTTP, AGENT];
        let mut voice = Voice::default();
        let ready = || Says::Wish(Wish::Ready);
        assert_eq!(wish(&mut voice, HTTP, ready(), &both), None);
        assert_eq!(
            wish(&mut voice, HTTP, ready(), &both),
            None,
            "the agent may say otherwise"
        );
        assert_eq!(
            wish(&mut voice, AGENT, says("drain"), &both),
            Some(Wish::Drain)
        );
        assert_eq!(wish(&mut voice, HTTP, ready(), &both), None);
        assert_eq!(wish(&mut voice, AGENT, says("up"), &both), None);
        assert_eq!(
            wish(&mut voice, AGENT, says("up ready"), &both),
            Some(Wish::Ready)
        );
        let mut voice = Voice::default();
        assert_eq!(wish(&mut voice, AGENT, says("up"), &both), None);
        wish(&mut voice, HTTP, ready(), &both);
        assert_eq!(wish(&mut voice, HTTP, ready(), &both), Some(Wish::Ready));
    }

    #[test]
    fn what_is_not_understood_is_passed_on_each_time() {
        let mut voice = Voice::default();
        for _ in 0..2 {
            let said = voice.take_in(AGENT, Some(says("75% up maxconn:30")), 1, &[AGENT]);
            assert_eq!(
                said.map(|said| said.not_understood).as_deref(),
                Some("75% maxconn:30")
            );
        }
    }
}
