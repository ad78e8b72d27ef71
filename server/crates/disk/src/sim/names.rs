//! The names of the simulated disk: a tree of directories whose changes wait for a `sync_dir`.
//!
//! A name change is one of three steps: link, unlink, rename. Steps wait in order. A `sync_dir` makes
//! durable every waiting step of that directory, and the earlier steps those depend on. At a power
//! loss the waiting steps survive either as a prefix (what a journal gives) or, harsher, as a prefix
//! per file (what POSIX allows). A rename never loses both names: it happened or it did not.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path};

use super::Toll;
use super::chance::Chance;
use super::content::Survival;

/// The number of a file or directory.
pub(super) type Inode = u64;

/// The root directory always exists.
pub(super) const ROOT: Inode = 0;

#[derive(Clone, Debug)]
enum Step {
    Link { directory: Inode, name: String, inode: Inode },
    Unlink { directory: Inode, name: String, inode: Inode },
    Rename { from: (Inode, String), to: (Inode, String), inode: Inode, replaced: Option<Inode> },
}

impl Step {
    fn inode(&self) -> Inode {
        match self {
            Step::Link { inode, .. } | Step::Unlink { inode, .. } | Step::Rename { inode, .. } => {
                *inode
            }
        }
    }

    fn directories(&self) -> [Inode; 2] {
        match self {
            Step::Link { directory, .. } | Step::Unlink { directory, .. } => [*directory; 2],
            Step::Rename { from, to, .. } => [from.0, to.0],
        }
    }
}

type Tree = BTreeMap<Inode, BTreeMap<String, Inode>>;

/// All directories.
#[derive(Clone)]
pub(super) struct Names {
    /// What programs see: directory → name → inode.
    current: Tree,
    /// What the platter holds.
    durable: Tree,
    waiting: Vec<Step>,
}

impl Names {
    pub(super) fn new() -> Self {
        let tree = Tree::from([(ROOT, BTreeMap::new())]);
        Self { current: tree.clone(), durable: tree, waiting: Vec::new() }
    }

    /// The inode at a path.
    pub(super) fn find(&self, path: &Path) -> io::Result<Inode> {
        let mut inode = ROOT;
        for component in path.components() {
            let Some(name) = normal(component)? else { continue };
            inode = *self
                .current
                .get(&inode)
                .ok_or(io::ErrorKind::NotADirectory)?
                .get(name)
                .ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(inode)
    }

    /// The directory that holds the path's last name, and that name.
    pub(super) fn place(&self, path: &Path) -> io::Result<(Inode, String)> {
        let last = path.components().next_back().ok_or(io::ErrorKind::InvalidInput)?;
        let name = normal(last)?.ok_or(io::ErrorKind::InvalidInput)?;
        let parent = self.find(path.parent().unwrap_or(Path::new("")))?;
        if !self.is_dir(parent) {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok((parent, name.to_string()))
    }

    pub(super) fn is_dir(&self, inode: Inode) -> bool {
        self.current.contains_key(&inode)
    }

    pub(super) fn entry(&self, place: &(Inode, String)) -> Option<Inode> {
        self.current.get(&place.0)?.get(&place.1).copied()
    }

    pub(super) fn entries(&self, directory: Inode) -> io::Result<&BTreeMap<String, Inode>> {
        self.current.get(&directory).ok_or(io::ErrorKind::NotADirectory.into())
    }

    pub(super) fn link(&mut self, place: (Inode, String), inode: Inode, is_dir: bool) {
        if is_dir {
            // An empty directory without a name is harmless, so it need not wait.
            self.current.insert(inode, BTreeMap::new());
            self.durable.insert(inode, BTreeMap::new());
        }
        self.step(Step::Link { directory: place.0, name: place.1, inode });
    }

    pub(super) fn unlink(&mut self, place: (Inode, String), inode: Inode) {
        self.step(Step::Unlink { directory: place.0, name: place.1, inode });
    }

    /// Unlinks everything below `directory`, deepest first; returns the files.
    pub(super) fn unlink_below(&mut self, directory: Inode) -> Vec<Inode> {
        let mut files = Vec::new();
        let entries = self.current.get(&directory).cloned().unwrap_or_default();
        for (name, inode) in entries {
            if self.is_dir(inode) {
                files.extend(self.unlink_below(inode));
            } else {
                files.push(inode);
            }
            self.unlink((directory, name), inode);
        }
        files
    }

    pub(super) fn rename(&mut self, from: (Inode, String), to: (Inode, String), inode: Inode) {
        let replaced = self.entry(&to);
        self.step(Step::Rename { from, to, inode, replaced });
    }

    fn step(&mut self, step: Step) {
        apply(&mut self.current, &step);
        self.waiting.push(step);
    }

    /// Makes the names of one directory durable.
    pub(super) fn sync(&mut self, directory: Inode) {
        let mut directories = BTreeSet::from([directory]);
        let mut due = vec![false; self.waiting.len()];
        for (position, step) in self.waiting.iter().enumerate().rev() {
            let touched = step.directories();
            if touched.iter().any(|inode| directories.contains(inode)) {
                due[position] = true;
                directories.extend(touched);
            }
        }
        let mut due = due.into_iter();
        let durable = &mut self.durable;
        self.waiting.retain(|step| {
            let is_due = due.next().unwrap_or(false);
            if is_due {
                apply(durable, step);
            }
            !is_due
        });
    }

    /// A power loss: decides which waiting steps happened.
    pub(super) fn lose_power(&mut self, survival: Survival, chance: &mut Chance, toll: &mut Toll) {
        let waiting = std::mem::take(&mut self.waiting);
        let journal = chance.below(2) == 0;
        let kept_in_order = match survival {
            Survival::Nothing => 0,
            Survival::Everything => waiting.len(),
            Survival::Some => chance.below(waiting.len() as u64 + 1) as usize,
        };
        let mut stopped: BTreeSet<Inode> = BTreeSet::new();
        for (position, step) in waiting.iter().enumerate() {
            let keep = match survival {
                Survival::Some if !journal => {
                    if chance.below(3) == 0 {
                        stopped.insert(step.inode());
                    }
                    !stopped.contains(&step.inode()) && self.displaces_as_before(step)
                }
                _ => position < kept_in_order,
            };
            if keep {
                apply(&mut self.durable, step);
            } else {
                toll.names += 1;
                stopped.insert(step.inode());
            }
        }
        let reachable = reachable(&self.durable);
        self.durable.retain(|directory, _| reachable.contains(directory));
        self.current = self.durable.clone();
    }

    /// Whether the step meets the name as it met it when it was made. A step that would push aside
    /// a file whose own earlier step was lost cannot have been written by any ordered journal.
    fn displaces_as_before(&self, step: &Step) -> bool {
        let (place, expected) = match step {
            Step::Link { directory, name, .. } => ((*directory, name), None),
            Step::Rename { to, replaced, .. } => ((to.0, &to.1), *replaced),
            Step::Unlink { .. } => return true,
        };
        let there = self.durable.get(&place.0).and_then(|entries| entries.get(place.1)).copied();
        there.is_none() || there == expected
    }

    /// Whether any name, present, durable or waiting, still leads to the inode.
    pub(super) fn is_named(&self, inode: Inode) -> bool {
        let in_tree = |tree: &Tree| tree.values().any(|names| names.values().any(|i| *i == inode));
        in_tree(&self.current)
            || in_tree(&self.durable)
            || self.waiting.iter().any(|step| step.inode() == inode)
    }

    /// Every inode with a name, present, durable or waiting: a name that was removed and not synced
    /// comes back at a power loss, with its file, also when the process died in between.
    pub(super) fn all_named(&self) -> BTreeSet<Inode> {
        let mut named = reachable(&self.current);
        named.extend(reachable(&self.durable));
        named.extend(self.waiting.iter().map(Step::inode));
        named
    }
}

fn reachable(tree: &Tree) -> BTreeSet<Inode> {
    let mut seen = BTreeSet::from([ROOT]);
    let mut open = vec![ROOT];
    while let Some(directory) = open.pop() {
        for inode in tree.get(&directory).into_iter().flat_map(BTreeMap::values) {
            if seen.insert(*inode) {
                open.push(*inode);
            }
        }
    }
    seen
}

fn apply(tree: &mut Tree, step: &Step) {
    match step {
        Step::Link { directory, name, inode } => {
            if let Some(entries) = tree.get_mut(directory) {
                entries.insert(name.clone(), *inode);
            }
        }
        Step::Unlink { directory, name, inode } => remove(tree, (*directory, name), *inode),
        Step::Rename { from, to, inode, .. } => {
            remove(tree, (from.0, &from.1), *inode);
            if let Some(entries) = tree.get_mut(&to.0) {
                entries.insert(to.1.clone(), *inode);
            }
        }
    }
}

fn remove(tree: &mut Tree, place: (Inode, &String), inode: Inode) {
    if let Some(entries) = tree.get_mut(&place.0)
        && entries.get(place.1) == Some(&inode)
    {
        entries.remove(place.1);
    }
}

fn normal(component: Component<'_>) -> io::Result<Option<&str>> {
    match component {
        Component::RootDir | Component::CurDir => Ok(None),
        Component::Normal(name) => {
            name.to_str().map(Some).ok_or(io::ErrorKind::InvalidFilename.into())
        }
        Component::ParentDir | Component::Prefix(_) => Err(io::ErrorKind::InvalidInput.into()),
    }
}
