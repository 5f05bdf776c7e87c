//! Weights and maintenance. Whoever is put aside keeps its flows like any other, and takes no new ones.

use super::*;

impl Simulator {
    /// Other weights, by hand, or those that the backends came with.
    pub fn weigh(&mut self) {
        let selection = self.several();
        let weight = [None, Some(0), Some(1), Some(2), Some(5)][self.random.below(5)];
        let force = self.random.one_in(4);
        let before = self.web().backends.clone();
        let result = self.engine.weigh(&selection, weight, force, self.now_ms);
        self.note(format!(
            "weight {selection:?} {weight:?} {force}: {result:?}"
        ));
        self.counts.weights += u64::from(result.is_ok());
        if !self.is_done(&before, result) {
            return;
        }
        for name in named(&selection) {
            let found = self.web().backend(&name).map(|(_, backend)| backend);
            if found.is_none_or(|backend| backend.hand_weight != weight) {
                self.fail(&format!("{name} has not the weight {weight:?}"));
            }
        }
    }

    /// Some are put aside.
    pub fn maintain(&mut self) {
        let selection = self.several();
        let force = self.random.one_in(4);
        let before = self.web().backends.clone();
        self.forget_cut();
        let result = self.engine.maintain(&selection, force, self.now_ms);
        self.note(format!("maintenance {selection:?} {force}: {result:?}"));
        self.counts.maintained += u64::from(result.is_ok());
        if self.is_done(&before, result) {
            self.all_are(&selection, &Admin::Maintenance);
        }
    }

    /// Some are put back to work, whatever they do.
    pub fn activate(&mut self) {
        let selection = self.several();
        let before = self.web().backends.clone();
        self.forget_cut();
        let result = self.engine.activate(&selection, self.now_ms);
        self.note(format!("activate {selection:?}: {result:?}"));
        self.counts.activated += u64::from(result.is_ok());
        if self.is_done(&before, result) {
            self.all_are(&selection, &Admin::Active);
        }
    }

    /// Whether it was carried out. What was refused has changed nothing; what failed may have been written down or not.
    fn is_done(
        &mut self,
        before: &BTreeMap<u32, Backend>,
        result: Result<String, Refused>,
    ) -> bool {
        let is_done = result.is_ok();
        self.after_several(before, result.map(drop));
        is_done
    }

    fn all_are(&self, selection: &Selection, admin: &Admin) {
        for name in named(selection) {
            let found = self.web().backend(&name).map(|(_, backend)| &backend.admin);
            if found != Some(admin) {
                self.fail(&format!("{name} is {found:?}, not {admin:?}"));
            }
        }
    }
}

/// The backends that a selection names by their own names.
fn named(selection: &Selection) -> Vec<String> {
    let paths = selection.backends.iter();
    paths
        .map(|path| path.trim_start_matches("web/").to_owned())
        .collect()
}
