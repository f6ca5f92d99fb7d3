//! The defects that the explorations have to find. Most were in lifemon once.

/// A defect, as a change of the sources.
pub(super) struct Mutant {
    pub(super) name: &'static str,
    pub(super) file: &'static str,
    /// The text that is right, which the file has once.
    pub(super) sound: &'static str,
    /// The text that is wrong.
    pub(super) broken: &'static str,
}

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "a new member is counted after its insertion",
        file: "monitor-ebpf/src/membership.rs",
        sound: "    store.count_live(tree);
    let key = MemberKey::new(*process, layer);
    match tried(|| store.insert_member(&key, membership)) {
        Ok(()) => Joined::Now,",
        broken: "    let key = MemberKey::new(*process, layer);
    match tried(|| store.insert_member(&key, membership)) {
        Ok(()) => {
            store.count_live(tree);
            Joined::Now
        }",
    },
    Mutant {
        name: "a member that was one already is counted twice",
        file: "monitor-ebpf/src/membership.rs",
        sound: "            store.count_dead(tree);
            if code == EEXIST {",
        broken: "            if code == EEXIST {",
    },
    Mutant {
        name: "a death is counted down before it is reported",
        file: "monitor-ebpf/src/membership.rs",
        sound: "        report(membership.slot, tree);
        store.count_exit(tree);
        store.count_dead(tree);",
        broken: "        store.count_exit(tree);
        store.count_dead(tree);
        report(membership.slot, tree);",
    },
    Mutant {
        name: "a creator that was lost is taken for the kernel",
        file: "monitor-ebpf/src/records.rs",
        sound: "        false => CREATOR_LOST,
    };
    let inserted",
        broken: "        false => NOT_HELD,
    };
    let inserted",
    },
    Mutant {
        name: "a refused deletion is taken for one that somebody else has made",
        file: "monitor-ebpf/src/records.rs",
        sound: "    if is_passing(result) {
        store.count_failed_delete();
    }",
        broken: "",
    },
    Mutant {
        name: "labelling again labels whoever was spared",
        file: "monitor/src/kernel/label.rs",
        sound: "    if !tree.spared.is_empty() {",
        broken: "    if false {",
    },
    Mutant {
        name: "the counter of a slot is read after it was given to another tree",
        file: "monitor/src/kernel/slots.rs",
        sound: "        if self.is_own(membership) {
            counters",
        broken: "        if true {
            counters",
    },
    Mutant {
        name: "the mark of a root stays when its watcher is killed",
        file: "monitor/src/kernel/slots.rs",
        sound: "        self.forget_roots()?;
        self.refresh_layers();
        Ok(reclaimed)",
        broken: "        self.refresh_layers();
        Ok(reclaimed)",
    },
    Mutant {
        name: "the bit of a layer stays when its watcher is killed",
        file: "monitor/src/kernel/slots.rs",
        sound: "        self.forget_roots()?;
        self.refresh_layers();
        Ok(reclaimed)",
        broken: "        self.forget_roots()?;
        Ok(reclaimed)",
    },
    Mutant {
        name: "a signal is sent without the second look",
        file: "monitor/src/kernel/sandwich.rs",
        sound: "    if !is_live()? {
        return Ok(Sent::Stale);
    }",
        broken: "    let _ = is_live;",
    },
    Mutant {
        name: "a death ends the membership before it marks the record",
        file: "monitor-ebpf/src/lifecycle.rs",
        sound: "    let creator = records::mark_dead(host, process, |record| fill(record, event));
    name(event, creator.unwrap_or(ProcessId::NONE));
    host.leave_all(process, event);",
        broken: "    host.leave_all(process, event);
    let creator = records::mark_dead(host, process, |record| fill(record, event));
    name(event, creator.unwrap_or(ProcessId::NONE));",
    },
    Mutant {
        name: "the pass does not look whether a new member has died",
        file: "monitor-ebpf/src/membership.rs",
        sound: "        Joined::Now if is_alive() => Visited::Inserted,",
        broken: "        Joined::Now if true => Visited::Inserted,",
    },
    Mutant {
        name: "userspace does not look whether a new member has died",
        file: "monitor/src/kernel/slots.rs",
        sound: "        if !is_live()? && self",
        broken: "        if false && !is_live()? && self",
    },
    Mutant {
        name: "a reading is taken for complete without a proof",
        file: "monitor/src/kernel/label.rs",
        sound: "let is_sure = is_proof || reading.is_closed();",
        broken: "let is_sure = true;",
    },
    Mutant {
        name: "a pass is taken for a proof although pids have begun again",
        file: "monitor/src/kernel/label.rs",
        sound: "&& clear_since.is_some_and(|since: Moment| since.is_in_one_turn_with(&ended));",
        broken: "&& clear_since.is_some_and(|_: Moment| ended.at >= begun.at);",
    },
    Mutant {
        name: "a record is copied without the second look",
        file: "monitor-ebpf/src/records.rs",
        sound: "    let again = store.find(id)?;
    (again == at).then_some(link)",
        broken: "    Some(link)",
    },
    Mutant {
        name: "a claim is made without the second look",
        file: "monitor-ebpf/src/records.rs",
        sound: "    if store.find(id) == Some(at) {
        return true;
    }
    store.change_claim(at, claim, FREE);
    false",
        broken: "    true",
    },
    Mutant {
        name: "a reference is kept for a child without a record",
        file: "monitor-ebpf/src/records.rs",
        sound: "    if inserted.is_err() && held {",
        broken: "    if false && held {",
    },
    Mutant {
        name: "a membership of an earlier generation counts",
        file: "monitor-ebpf/src/membership.rs",
        sound: "    (store.generation(tree) == membership.generation).then_some(tree)",
        broken: "    Some(tree)",
    },
    Mutant {
        name: "a child is a member before it has a record",
        file: "monitor-ebpf/src/lifecycle.rs",
        sound: "    let is_followed = host.insert_child(creator, process, record);
    host.inherit(creator, process, event, is_followed);",
        broken: "    host.inherit(creator, process, event, true);
    host.insert_child(creator, process, record);",
    },
    Mutant {
        name: "a record is removed without a claim",
        file: "monitor-ebpf/src/rules.rs",
        sound: "    if !lineage.claim(id, TAKEN) {
        return Taken::Left;
    }
    // Read after",
        broken: "    // Read after",
    },
    Mutant {
        name: "the slot of a living owner is reclaimed",
        file: "monitor/src/kernel/seat.rs",
        sound: "scene.is_watching(&owner))",
        broken: "Ok(scene.is_watching(&owner)? && false))",
    },
    Mutant {
        name: "memberships can be made in a slot that is given back",
        file: "monitor/src/kernel/slots.rs",
        sound: "            .store(used.wrapping_add(2), Ordering::SeqCst);",
        broken: "            .store(used, Ordering::SeqCst);",
    },
];
