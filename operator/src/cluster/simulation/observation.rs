//! What the operator sees of the world, which is not all of it, and not always as it is.

use super::*;

impl World {
    pub(super) fn reaches(&self, serial: Serial) -> bool {
        let node = self.servers.get(&serial).and_then(|server| server.node);
        !node.is_some_and(|node| matches!(self.nodes[node], Node::Cut(_)))
    }

    /// The Pod as the API server has it, and whose word that is.
    fn pod(&self, server: &Server) -> Pod {
        let Some(node) = server.node.map(|node| self.nodes[node]) else {
            return server.pod.clone();
        };
        let marked = match node {
            Node::Cut(since) if self.now.duration_since(since) >= GRACE => Some(Cause::NotReady),
            _ => server.pod.down.clone(),
        };
        let kubelet = match node {
            Node::Cut(_) if self.believes_the_node_controller => Kubelet::Heard,
            // Until the grace is over nobody notices.
            Node::Cut(since) if self.now.duration_since(since) < GRACE => Kubelet::Heard,
            Node::Up => Kubelet::Heard,
            Node::Cut(_) | Node::Silent(_) | Node::Gone => Kubelet::Silent,
        };
        Pod { down: marked, kubelet, ..server.pod.clone() }
    }

    pub(super) fn observe(&self) -> Observed {
        let asked = self.voters().into_iter().any(|entry| {
            let serial = self.desired.names.serial_of(&entry.peer_url).unwrap();
            self.runs(&entry) && self.reaches(serial)
        });
        let answers = asked && self.available();
        let membership = self.etcd.as_ref().filter(|_| answers).map(|etcd| Membership {
            cluster_id: etcd.cluster_id,
            entries: self.entries(etcd),
            corrupt: false,
        });
        let members =
            self.objects.iter().map(|(serial, object)| (*serial, self.member(*serial, object)));
        Observed { membership, members: members.collect(), ..self.status.clone() }
    }

    fn entries(&self, etcd: &Etcd) -> Vec<Entry> {
        let mut entries = etcd.entries.clone();
        for entry in entries.iter_mut().filter(|_| self.takes_names_for_starts) {
            entry.started = !entry.name.is_empty();
        }
        entries
    }

    fn member(&self, serial: Serial, object: &Object) -> Member {
        let volume = self.volumes.get(&serial);
        let claim = match (&object.claim_uid, volume) {
            (None, None) => Claim::Unborn,
            (None, Some(volume)) => Claim::Unlatched { uid: volume.uid.clone() },
            (Some(uid), Some(volume)) if *uid == volume.uid => Claim::Bound,
            (Some(_), _) => Claim::Lost,
        };
        let node = volume.and_then(|volume| volume.node);
        let server = self.servers.get(&serial);
        let reach = match (server.and_then(|s| s.serving_since), &self.etcd, volume) {
            _ if !self.reaches(serial) => Reach::Silent(Silence::Timeout),
            (Some(since), Some(etcd), Some(Volume { data: Some(data), .. })) => {
                Reach::Serving(Serving {
                    since,
                    lag: etcd.commit.saturating_sub(data.applied),
                    leader: etcd.leader == Some(data.id),
                    version: "3.7.3".to_owned(),
                })
            }
            _ if server.is_some_and(|server| server.running) => Reach::Silent(Silence::NoLeader),
            _ => Reach::Silent(Silence::Timeout),
        };
        let pod = server.map(|server| self.pod(server));
        let loss = match (&claim, node.map(|node| self.nodes[node])) {
            (Claim::Lost, _) => Some(Loss::Claim),
            (_, Some(Node::Gone)) => Some(Loss::NodeGone),
            (_, Some(Node::Silent(since) | Node::Cut(since)))
                if self.now.duration_since(since).as_secs() > 300 =>
            {
                Some(Loss::NodeSilent)
            }
            _ => {
                let down = pod.as_ref().and_then(|pod| pod.down.as_ref());
                data_loss(object.id, down, object.data_gone, &reach)
            }
        };
        Member {
            serial,
            initial_state: object.initial_state,
            replacement: object.replacement,
            id: object.id,
            listed_since: object.listed_since,
            voted: object.voted,
            deletion_requested: object.deletion_requested,
            join_refused: object.join_refused,
            claim,
            pod,
            loss,
            loss_due: None,
            reach,
        }
    }
}
