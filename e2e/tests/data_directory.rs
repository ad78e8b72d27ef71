//! What a server makes of the data directory that it finds: its own after a crash, one member's of a
//! lost cluster, a damaged one, somebody else's.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, also in its helpers")]

mod calls;

use std::fs;
use std::path::{Path, PathBuf};

use calls::{
    add_learner, add_member, hash_kv, members, put, read_all, remove_member, status, until,
};
use e2e::processes::{Cluster, Member, ServerOptions};

fn our_etcd() -> PathBuf {
    e2e::peers::our_binary("etcd").unwrap()
}

fn options(members: usize, flags: &[&str]) -> ServerOptions {
    ServerOptions {
        members,
        flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        ..ServerOptions::one(&our_etcd())
    }
}

fn fill(member: &Member, keys: std::ops::Range<usize>) -> Vec<(String, Vec<u8>)> {
    keys.map(|number| {
        let (key, value) = (format!("key-{number:04}"), format!("value {number}").into_bytes());
        put(member, &key, &value).unwrap();
        (key, value)
    })
    .collect()
}

/// The file of a directory with the highest name that ends so.
fn newest(directory: &Path, ending: &str) -> PathBuf {
    let mut files: Vec<PathBuf> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.to_str().is_some_and(|path| path.ends_with(ending)));
    files.sort();
    files.pop().unwrap_or_else(|| panic!("{} has no {ending}", directory.display()))
}

#[test]
fn one_member_of_a_lost_cluster_goes_on_alone_and_can_grow_again() {
    let options = options(3, &["--snapshot-count=100"]);
    let mut cluster = Cluster::start(&options).unwrap();
    let mut written = fill(&cluster.members()[0], 0..150);
    let before = members(&cluster.members()[2]).unwrap();
    // The last entries reach the survivor with the answer of a linearizable read there.
    assert_eq!(read_all(&cluster.members()[2]).unwrap(), written);
    let revision = status(&cluster.members()[2]).unwrap().header.unwrap().revision;
    let hash = hash_kv(&cluster.members()[2], revision).unwrap().hash;
    for index in 0..3 {
        cluster.member_mut(index).kill().unwrap();
    }

    let survivor = cluster.member_mut(2);
    survivor.set_flag("--force-new-cluster");
    survivor.restart().unwrap();
    assert!(survivor.log().contains("forcing restart member"), "{}", survivor.log());
    let survivor = &cluster.members()[2];
    assert_eq!(read_all(survivor).unwrap(), written);
    assert_eq!(hash_kv(survivor, revision).unwrap().hash, hash);
    let alone = members(survivor).unwrap();
    let own = before.members.iter().find(|member| member.name == "m3").unwrap();
    assert_eq!(alone.members, std::slice::from_ref(own), "the ids stay");
    assert_eq!(alone.header.unwrap().cluster_id, before.header.unwrap().cluster_id);
    written.extend(fill(survivor, 150..160));

    // A second start with the flag changes nothing, and one without it neither.
    cluster.member_mut(2).restart().unwrap();
    cluster.member_mut(2).clear_flag("--force-new-cluster");
    cluster.member_mut(2).restart().unwrap();
    for _ in 0..2 {
        let of: Vec<usize> = [2].into_iter().chain(3..cluster.members().len()).collect();
        let joining = cluster.prepare_to_join(&options, &of).unwrap();
        let peer_url = cluster.members()[joining].peer_url.clone();
        let survivor = &cluster.members()[2];
        until("the cluster takes a member", || add_member(survivor, &peer_url).is_ok());
        cluster.member_mut(joining).launch().unwrap();
        cluster.member_mut(joining).wait_until_healthy().unwrap();
    }
    written.extend(fill(&cluster.members()[4], 160..170));
    for index in [2, 3, 4] {
        assert_eq!(read_all(&cluster.members()[index]).unwrap(), written, "member {index}");
    }
    assert_eq!(members(&cluster.members()[3]).unwrap().members.len(), 3);
}

#[test]
fn the_engine_sled_has_everything_after_a_crash() {
    let mut cluster =
        Cluster::start(&options(1, &["--backend-engine=sled", "--snapshot-count=100"])).unwrap();
    let mut written = Vec::new();
    for round in 0..3 {
        written.extend(fill(&cluster.members()[0], round * 150..(round + 1) * 150));
        let revision = status(&cluster.members()[0]).unwrap().header.unwrap().revision;
        let hash = hash_kv(&cluster.members()[0], revision).unwrap().hash;
        cluster.member_mut(0).kill().unwrap();
        cluster.member_mut(0).restart().unwrap();
        assert_eq!(read_all(&cluster.members()[0]).unwrap(), written);
        assert_eq!(hash_kv(&cluster.members()[0], revision).unwrap().hash, hash);
    }
    let member = cluster.member_mut(0);
    let store = member.data_directory.join("member/store/0/db");
    assert!(store.exists(), "the values are in sled's files");

    // The other engine would find nothing there, and says so.
    member.stop().unwrap();
    member.clear_flag("--backend-engine");
    let (ended, log) = member.launch_until_end().unwrap();
    assert!(!ended.success());
    assert!(log.contains("start with --backend-engine=sled"), "{log}");
    member.set_flag("--backend-engine=sled");
    member.restart().unwrap();
    assert_eq!(read_all(&cluster.members()[0]).unwrap(), written);
}

#[test]
fn a_bad_record_inside_the_log_is_refused_with_its_file_and_the_way_back() {
    let mut cluster = Cluster::start(&options(1, &[])).unwrap();
    let written = fill(&cluster.members()[0], 0..50);
    let member = cluster.member_mut(0);
    member.kill().unwrap();
    let file = newest(&member.data_directory.join("member/wal"), ".wal");
    let sound = fs::read(&file).unwrap();
    let mut damaged = sound.clone();
    let place = find(&sound, b"value 20");
    damaged[place] ^= 1;
    fs::write(&file, &damaged).unwrap();
    let (ended, log) = member.launch_until_end().unwrap();
    assert!(!ended.success());
    assert!(log.contains(file.to_str().unwrap()), "the file is not named: {log}");
    assert!(log.contains("is damaged at offset"), "{log}");
    assert!(log.contains("add it again as a new member"), "the way back is not told: {log}");
    assert_eq!(fs::read(&file).unwrap(), damaged, "a refusal changes nothing");

    fs::write(&file, &sound).unwrap();
    member.restart().unwrap();
    assert_eq!(read_all(&cluster.members()[0]).unwrap(), written);
}

fn find(bytes: &[u8], part: &[u8]) -> usize {
    bytes.windows(part.len()).position(|window| window == part).unwrap()
}

#[test]
fn an_image_with_a_changed_byte_is_refused_with_its_file_and_the_way_back() {
    let mut cluster = Cluster::start(&options(1, &["--snapshot-count=10"])).unwrap();
    fill(&cluster.members()[0], 0..50);
    let images = cluster.members()[0].data_directory.join("member/image");
    until("an image is written", || has_image(&images));
    let member = cluster.member_mut(0);
    member.stop().unwrap();
    let file = newest(&images, ".image");
    let mut damaged = fs::read(&file).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&file, &damaged).unwrap();
    let (ended, log) = member.launch_until_end().unwrap();
    assert!(!ended.success());
    assert!(log.contains(file.to_str().unwrap()), "the file is not named: {log}");
    assert!(log.contains("add it again as a new member"), "the way back is not told: {log}");
}

fn has_image(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| {
        entries.any(|entry| entry.unwrap().path().extension().is_some_and(|e| e == "image"))
    })
}

#[test]
fn a_directory_of_another_cluster_or_member_is_refused() {
    let mut one = Cluster::start(&options(1, &["--snapshot-count=10"])).unwrap();
    let mut other =
        Cluster::start(&options(1, &["--snapshot-count=10", "--initial-cluster-token=other"]))
            .unwrap();
    fill(&one.members()[0], 0..30);
    fill(&other.members()[0], 0..30);
    for cluster in [&one, &other] {
        let images = cluster.members()[0].data_directory.join("member/image");
        until("an image is written", || has_image(&images));
    }
    let foreign = members(&other.members()[0]).unwrap().header.unwrap();
    one.member_mut(0).stop().unwrap();
    other.member_mut(0).stop().unwrap();
    let own_directory = one.members()[0].data_directory.clone();
    let foreign_directory = other.members()[0].data_directory.clone();

    for part in ["wal", "image"] {
        let kept = own_directory.join("kept");
        let place = own_directory.join("member").join(part);
        fs::rename(&place, &kept).unwrap();
        copy_directory(&foreign_directory.join("member").join(part), &place);
        let (ended, log) = one.member_mut(0).launch_until_end().unwrap();
        assert!(!ended.success());
        assert!(log.contains(&format!("{}/", place.display())), "no file is named: {log}");
        let owner = format!(
            "belongs to member {:x} of cluster {:x}",
            foreign.member_id, foreign.cluster_id
        );
        assert!(log.contains(&owner), "{log}");
        fs::remove_dir_all(&place).unwrap();
        fs::rename(&kept, &place).unwrap();
    }

    // A whole directory carries its identity; who expects another one is told.
    for what in ["cluster", "member"] {
        let member = one.member_mut(0);
        member.set_flag(&format!("--expect-{what}-id=1234"));
        let (ended, log) = member.launch_until_end().unwrap();
        assert!(!ended.success());
        assert!(log.contains("start with the right data directory"), "{log}");
        assert!(log.contains(&format!("belongs to {what}")), "{log}");
        member.clear_flag("--expect-");
    }
    one.member_mut(0).restart().unwrap();
    assert_eq!(read_all(&one.members()[0]).unwrap().len(), 30);
}

/// It would have forgotten its vote and what it acknowledged. Go etcd refuses it in a new cluster; ours also
/// where the flags say that the cluster exists.
#[test]
fn a_member_whose_directory_is_gone_does_not_come_back_under_its_id() {
    for program in [e2e::peers::etcd_binaries().unwrap().etcd, our_etcd()] {
        let options = ServerOptions { members: 3, ..ServerOptions::one(&program) };
        let mut cluster = Cluster::start(&options).unwrap();
        let written = fill(&cluster.members()[0], 0..20);
        let id = status(&cluster.members()[2]).unwrap().header.unwrap().member_id;
        let refusal = format!("member {id:x} has already been bootstrapped");
        let lose = |member: &mut Member| {
            member.stop().unwrap();
            fs::remove_dir_all(&member.data_directory).unwrap();
        };
        let lost = cluster.member_mut(2);
        lose(lost);
        let (ended, log) = lost.launch_until_end().unwrap();
        assert!(!ended.success() && log.contains(&refusal), "{log}");
        if program != our_etcd() {
            continue;
        }
        lost.set_flag("--initial-cluster-state=existing");
        let (ended, log) = lost.launch_until_end().unwrap();
        assert!(!ended.success() && log.contains(&refusal), "{log}");
        assert!(log.contains(&format!("etcdctl member remove {id:x}")), "{log}");

        // What it was told to do helps.
        remove_member(&cluster.members()[0], id).unwrap();
        let peer_url = cluster.members()[2].peer_url.clone();
        until("the cluster takes it again", || {
            add_member(&cluster.members()[0], &peer_url).is_ok()
        });
        cluster.member_mut(2).restart().unwrap();
        assert_eq!(read_all(&cluster.members()[2]).unwrap(), written);
        assert_ne!(status(&cluster.members()[2]).unwrap().header.unwrap().member_id, id);
    }
}

/// Neither when it joins nor when it comes back.
#[test]
fn a_member_does_not_start_where_there_are_more_learners_than_it_allows() {
    const REFUSAL: &str = "membership: too many learner members in cluster";
    for program in [e2e::peers::etcd_binaries().unwrap().etcd, our_etcd()] {
        let options = ServerOptions::one(&program);
        let mut cluster = Cluster::start(&options).unwrap();
        let learner = cluster.prepare_to_join(&options, &[0]).unwrap();
        let peer_url = cluster.members()[learner].peer_url.clone();
        add_learner(&cluster.members()[0], &peer_url).unwrap();
        for at in [0, learner] {
            let member = cluster.member_mut(at);
            member.stop().unwrap();
            member.set_flag("--max-learners=0");
            let (ended, log) = member.launch_until_end().unwrap();
            assert!(!ended.success() && log.contains(REFUSAL), "{log}");
            // It starts with a flag that allows it.
            member.clear_flag("--max-learners");
            member.launch().unwrap();
            member.wait_until_healthy().unwrap();
        }
        until("the learner has started", || {
            let found = members(&cluster.members()[0]).unwrap().members;
            found.iter().any(|member| member.is_learner && !member.name.is_empty())
        });
    }
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// A directory that was there already keeps the rights that it had in Go etcd, which only warns.
#[test]
fn cve_2020_15113_a_data_directory_that_others_may_read_is_closed() {
    use std::os::unix::fs::PermissionsExt;
    let open = |member: &Member| -> anyhow::Result<()> {
        fs::create_dir(&member.data_directory)?;
        fs::set_permissions(&member.data_directory, fs::Permissions::from_mode(0o755))?;
        Ok(())
    };
    let cluster = Cluster::start_prepared(&options(1, &[]), &open).unwrap();
    let mut directories = vec![cluster.members()[0].data_directory.clone()];
    let mut seen = 0;
    while let Some(directory) = directories.pop() {
        let mode = fs::metadata(&directory).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} has {mode:o}", directory.display());
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => directories.push(path),
                false => {
                    let mode = fs::metadata(&path).unwrap().permissions().mode();
                    assert_eq!(mode & 0o077, 0, "{} has {mode:o}", path.display());
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 1, "the log and more was looked at");
}

#[test]
fn a_start_that_expects_another_cluster_or_member_is_refused() {
    let mut cluster = Cluster::start(&options(1, &[])).unwrap();
    let header = status(&cluster.members()[0]).unwrap().header.unwrap();
    let member = cluster.member_mut(0);
    for (flag, own) in
        [("--expect-cluster-id=", header.cluster_id), ("--expect-member-id=", header.member_id)]
    {
        member.stop().unwrap();
        member.set_flag(&format!("{flag}{:x}", own ^ 1));
        let (ended, log) = member.launch_until_end().unwrap();
        assert!(!ended.success(), "{flag}: {log}");
        assert!(log.contains(&format!("{own:x}")), "it says whose the directory is: {log}");
        member.clear_flag(flag);
        member.set_flag(&format!("{flag}{own:x}"));
        member.launch().unwrap();
        member.wait_until_healthy().unwrap();
    }
}
