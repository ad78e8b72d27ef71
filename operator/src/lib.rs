//! The operator: runs etcd clusters on Kubernetes.
//!
//! | kind | controller | what it does |
//! |---|---|---|
//! | `EtcdCluster`, `EtcdMember` | [`cluster`] | observe → plan → act → report; the only one that changes membership |
//! | `EtcdBackup` | [`backup`] | one Job per backup |
//! | `EtcdBackupSchedule` | [`backup::schedule_controller`] | creates and prunes backups |
//!
//! The decisions are functions of what was seen and the time: [`cluster::plan`],
//! [`backup::schedule`], [`backup::retention`]. [`kubernetes`] is the only file that writes to
//! Kubernetes, and [`etcd`] the only one that speaks to etcd. The operator uses the public
//! protocol of etcd and no crate of the server.

pub mod backup;
pub mod certificates;
pub mod cli;
pub mod cluster;
pub mod context;
pub mod crd;
pub mod etcd;
pub mod kubernetes;
pub mod leader_election;
pub mod manifests;
pub mod metrics;
pub mod run;
pub mod telemetry;
