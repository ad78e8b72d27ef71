//! What happens to the world without the operator's doing: users, losses, and their return.

use super::*;

impl World {
    pub(super) fn disturb(&mut self) {
        let serials: Vec<Serial> = self.objects.keys().copied().collect();
        if serials.is_empty() {
            return;
        }
        let serial = serials[self.chance.below(serials.len())];
        let voters = self.voters().len();
        let is_voter = self
            .voters()
            .iter()
            .any(|entry| self.desired.names.serial_of(&entry.peer_url) == Some(serial));
        // Losses for good stay within what the cluster tolerates; else nothing can be expected.
        // Before the cluster is latched there is always one more attempt, also if a quorum was there
        // for a moment.
        let formed = self.status.cluster_id.is_some();
        let affordable = !formed || !is_voter || self.intact_voters(Some(serial)) >= quorum(voters);
        match self.chance.below(13) {
            0..=2 => {
                self.stop(serial);
                if let Some(server) = self.servers.get_mut(&serial) {
                    server.pod.terminating = true;
                }
            }
            3 if affordable => {
                self.stop(serial);
                self.volumes.remove(&serial);
                self.log.push(format!("{} claim of {serial} lost", self.now));
            }
            4 if affordable => self.lose_node(serial, Node::Gone),
            5 if affordable => self.lose_node(serial, Node::Silent(self.now)),
            6 => {
                let away = self.nodes.iter_mut().filter(|node| node.comes_back());
                away.for_each(|node| *node = Node::Up);
            }
            7 if affordable && voters > 1 => {
                if let Some(object) = self.objects.get_mut(&serial) {
                    object.deletion_requested = true;
                    self.log.push(format!("{} {serial} is to be replaced", self.now));
                }
            }
            8 => self.desired.replicas = [1, 3, 5][self.chance.below(3)],
            9 | 10 => {
                self.uids += 1;
                self.desired.template = format!("t{}", self.uids);
                if self.chance.percent(30) {
                    self.bad_templates.insert(self.desired.template.clone());
                }
                self.log.push(format!("{} template {}", self.now, self.desired.template));
            }
            11 if affordable && formed => self.empty_volume(serial),
            12 => self.cut_off(),
            _ => {}
        }
    }

    /// A bound volume comes back without what was on it; the claim is the same.
    fn empty_volume(&mut self, serial: Serial) {
        let has_run = self.volumes.get(&serial).is_some_and(|volume| volume.data.is_some());
        let is_member = self.member_entry(serial).is_some_and(|entry| entry.started);
        if !has_run || !is_member {
            return;
        }
        self.stop(serial);
        if let Some(volume) = self.volumes.get_mut(&serial) {
            volume.data = None;
            volume.emptied = true;
        }
        *self.actions.entry(EMPTIED).or_default() += 1;
        self.log.push(format!("{} volume of {serial} is empty", self.now));
    }

    fn member_entry(&self, serial: Serial) -> Option<&Entry> {
        let peer_url = self.desired.names.peer_url(serial);
        self.etcd.as_ref()?.entries.iter().find(|entry| entry.peer_url == peer_url)
    }

    /// The server's process ends, and with it its leadership.
    fn stop(&mut self, serial: Serial) {
        let id = self.volumes.get(&serial).and_then(|v| v.data.as_ref()).map(|data| data.id);
        if let Some(server) = self.servers.get_mut(&serial) {
            server.running = false;
            server.serving_since = None;
        }
        if let Some(etcd) = self.etcd.as_mut().filter(|etcd| id.is_some() && etcd.leader == id) {
            etcd.leader = None;
        }
    }

    /// The control plane and the operator reach some nodes no more; nothing ends by that.
    fn cut_off(&mut self) {
        let nodes: BTreeSet<usize> = self.volumes.values().filter_map(|v| v.node).collect();
        for node in nodes {
            if self.nodes[node] == Node::Up && self.chance.percent(70) {
                self.nodes[node] = Node::Cut(self.now);
                self.nodes.push(Node::Up);
                self.log.push(format!("{} node {node} is cut off", self.now));
            }
        }
    }

    fn lose_node(&mut self, serial: Serial, state: Node) {
        let Some(node) = self.volumes.get(&serial).and_then(|volume| volume.node) else { return };
        let shared = self.volumes.values().filter(|volume| volume.node == Some(node)).count();
        if self.nodes[node] == Node::Up && shared == 1 {
            self.stop(serial);
            self.nodes[node] = state;
            self.nodes.push(Node::Up);
            self.log.push(format!("{} node {node} of {serial}: {state:?}", self.now));
        }
    }
}
