//! Rules of the code base that no compiler checks: which room may depend on which, how long a file
//! may be, and what must not be in the repository.
//!
//! Exceptions are lists that may only shrink: an entry that is not needed any more is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What each room may name under `[dependencies]`, of the other rooms. `ARCHITECTURE.md` explains the
/// arrows; none of them points up.
const ROOMS: [(&str, &[&str]); 22] = [
    ("types", &[]),
    ("disk", &["types"]),
    ("wal", &["disk", "types"]),
    ("revlog", &["disk", "types"]),
    ("mvcc", &["revlog", "types", "proto"]),
    ("lease", &["types"]),
    ("tables", &["types", "proto"]),
    ("machine", &["mvcc", "revlog", "lease", "tables", "types", "proto"]),
    ("watch", &["mvcc", "revlog", "types", "proto"]),
    ("replica", &["wal", "disk", "revlog", "mvcc", "machine", "types", "proto"]),
    ("deadlines", &["lease", "machine", "replica", "types", "proto"]),
    ("bbolt", &["types", "proto"]),
    ("concurrency", &["types", "proto"]),
    ("history", &["watch", "types", "proto"]),
    (
        "sim",
        &[
            "replica",
            "machine",
            "mvcc",
            "revlog",
            "disk",
            "watch",
            "deadlines",
            "concurrency",
            "history",
            "types",
            "proto",
        ],
    ),
    ("client", &["proto", "types"]),
    ("cobra", &["types"]),
    ("etcdctl", &["client", "cobra", "proto", "types"]),
    // It makes data directories, so it needs the rooms that own their formats.
    (
        "etcdutl",
        &[
            "bbolt", "cobra", "disk", "machine", "mvcc", "proto", "replica", "revlog", "server",
            "types",
        ],
    ),
    ("fuzz", &["disk", "etcdutl", "server"]),
    ("proto", &[]),
    (
        "server",
        &[
            "types",
            "disk",
            "wal",
            "revlog",
            "mvcc",
            "tables",
            "machine",
            "watch",
            "replica",
            "deadlines",
            "bbolt",
            "client",
            "concurrency",
            "proto",
        ],
    ),
];

/// Rooms whose apply must not know time, chance or map order.
const PURE: [&str; 3] = ["machine", "lease", "tables"];

/// Crates that one room keeps to itself.
const PRIVATE: [(&str, &[&str]); 6] = [
    ("openraft", &["replica"]),
    ("sled", &["revlog"]),
    ("axum", &[]),
    ("hyper", &["server"]),
    ("rustls", &["server", "client", "etcdctl"]),
    ("prometheus", &["server", "deadlines", "replica", "wal", "revlog", "sim"]),
];

/// Lines of a file before its tests.
const FILE_LINES_MAX: usize = 600;

/// Files that are longer, by how much. Split them.
const LONG_FILES: &[(&str, usize)] = &[];

/// Files in which a path of some machine still stands. Replace it.
const PLACES: &[&str] = &["e2e/src/kubernetes/layout.rs"];

fn root() -> PathBuf {
    let server = Path::new(env!("CARGO_MANIFEST_DIR"));
    server.parent().expect("the package lies in the workspace").to_owned()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every file below `directory` with one of the endings, without what builds leave behind.
fn files(directory: &Path, endings: &[&str], found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("the directory can be read") {
        let path = entry.expect("the entry can be read").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" {
                files(&path, endings, found);
            }
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
}

fn manifest(room: &str) -> PathBuf {
    match room {
        "server" | "proto" => root().join(room).join("Cargo.toml"),
        _ => root().join("server/crates").join(room).join("Cargo.toml"),
    }
}

/// The names under `[dependencies]` of a manifest.
fn dependencies(manifest: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut inside = false;
    for line in read(manifest).lines() {
        if line.starts_with('[') {
            inside = line.trim() == "[dependencies]";
        } else if inside && line.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            names.extend(line.split([' ', '.', '=']).next().map(str::to_owned));
        }
    }
    names
}

#[test]
fn no_arrow_between_rooms_points_up() {
    let rooms: BTreeMap<&str, &[&str]> = ROOMS.into_iter().collect();
    for entry in std::fs::read_dir(root().join("server/crates")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        assert!(rooms.contains_key(name.as_str()), "the room {name} is missing from the table");
    }
    for (room, allowed) in ROOMS {
        for name in dependencies(&manifest(room)) {
            let is_room = rooms.contains_key(name.as_str());
            assert!(
                !is_room || allowed.contains(&name.as_str()),
                "{room} must not depend on {name}"
            );
        }
    }
    let shared = ["proto", "client", "types"];
    // The tests of mixed versions start the server as other releases.
    let for_tests = ["proto", "client", "types", "server"];
    for (package, allowed) in [("operator", &shared[..]), ("e2e", &for_tests)] {
        for name in dependencies(&root().join(package).join("Cargo.toml")) {
            let allowed = !rooms.contains_key(name.as_str()) || allowed.contains(&name.as_str());
            assert!(allowed, "{package} must not depend on {name}");
        }
    }
}

#[test]
fn some_crates_belong_to_one_room() {
    for (room, _) in ROOMS {
        let names = dependencies(&manifest(room));
        for (name, owners) in PRIVATE {
            assert!(!names.contains(name) || owners.contains(&room), "{room} must not use {name}");
        }
    }
}

#[test]
fn pure_rooms_repeat_the_rules_of_the_root_and_add_their_own() {
    let root_rules = read(&root().join("clippy.toml"));
    for room in PURE {
        let rules = read(&root().join("server/crates").join(room).join("clippy.toml"));
        for line in root_rules.lines().filter(|line| line.contains(" = ")) {
            assert!(rules.contains(line), "{room}/clippy.toml lacks {line:?}");
        }
        for banned in ["SystemTime::now", "Instant::now", "HashMap"] {
            assert!(rules.contains(banned), "{room}/clippy.toml does not ban {banned}");
        }
    }
}

/// T23 (etcd #12291): leases had negative times to live after the wall clock was set. Nothing that counts
/// them knows it.
#[test]
fn t23_leases_are_counted_without_a_wall_clock() {
    let mut sources = Vec::new();
    files(&root().join("server/crates/lease/src"), &["rs"], &mut sources);
    files(&root().join("server/crates/deadlines/src"), &["rs"], &mut sources);
    assert!(sources.len() > 3, "{sources:?}");
    for path in sources {
        let text = read(&path);
        for clock in ["SystemTime", "UNIX_EPOCH", "std::time::Instant"] {
            assert!(!text.contains(clock), "{} knows {clock}", path.display());
        }
    }
    let rules = read(&root().join("server/crates/lease/clippy.toml"));
    assert!(rules.contains("SystemTime::now") && rules.contains("Instant::now"));
}

#[test]
fn files_are_short() {
    let mut sources = Vec::new();
    for directory in ["server", "operator", "e2e", "proto"] {
        files(&root().join(directory), &[".rs"], &mut sources);
    }
    assert!(sources.len() > 50, "the sources were not found");
    let mut wrong = Vec::new();
    for path in sources {
        let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        if name.contains("/tests/") || name.ends_with("tests.rs") {
            continue;
        }
        let lines = read(&path).lines().take_while(|line| *line != "#[cfg(test)]").count();
        let allowed = LONG_FILES.iter().find(|(file, _)| *file == name);
        match allowed {
            None if lines > FILE_LINES_MAX => wrong.push(format!("{name} has {lines} lines")),
            Some((_, max)) if lines > *max => wrong.push(format!("{name} grew to {lines} lines")),
            Some(_) if lines <= FILE_LINES_MAX => {
                wrong.push(format!("{name} has {lines} lines: drop its exception"));
            }
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "split these files: {wrong:#?}");
}

#[test]
fn nothing_of_the_place_where_it_was_written_is_in_the_repository() {
    // Put together here so that this file does not find itself.
    let banned: Vec<String> = [
        ("/wo", "rk/"),
        ("/ro", "ot/"),
        ("/home", "/"),
        ("clau", "de"),
        ("anthr", "opic"),
        ("NOTE_FROM", "_LEAD"),
        ("chat", "gpt"),
        ("copi", "lot"),
    ]
    .iter()
    .map(|(head, tail)| format!("{head}{tail}"))
    .collect();
    let mut sources = Vec::new();
    files(&root(), &[".rs", ".toml", ".md", ".proto", ".yaml", ".yml", ".sh", ".go"], &mut sources);
    for path in sources {
        let is_excepted = PLACES.iter().any(|place| path.ends_with(place));
        let text = read(&path).to_lowercase();
        for word in &banned {
            // A path counts only where it begins: `{directory}/...` may well have such a part.
            let found = text.match_indices(&word.to_lowercase()).any(|(at, _)| {
                !text[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || "}.-_".contains(c))
            });
            assert!(!found || is_excepted, "{} contains {word:?}", path.display());
        }
    }
}

#[test]
fn what_is_left_to_do_has_an_issue() {
    let (word, mut sources) = (["TO", "DO"].concat(), Vec::new());
    files(&root().join("server"), &[".rs", ".proto"], &mut sources);
    for path in sources {
        for (number, line) in read(&path).lines().enumerate() {
            let found = line.contains(&format!("{word}:")) || line.contains(&format!("// {word}"));
            let place = format!("{}:{}", path.display(), number + 1);
            assert!(!found || line.contains(&format!("{word}(#")), "{place}: name an issue");
        }
    }
}

/// The table of advisories in `server/README.md` names tests that exist.
#[test]
fn every_advisory_has_the_test_that_the_readme_names() {
    let mut sources = Vec::new();
    for directory in ["server", "e2e"] {
        files(&root().join(directory), &[".rs"], &mut sources);
    }
    let sources: String = sources.iter().map(|path| read(path)).collect();
    let readme = read(&root().join("server/README.md"));
    let is_advisory =
        |line: &&str| ["| CVE-", "| GHSA-"].iter().any(|start| line.starts_with(start));
    let rows: Vec<&str> = readme.lines().filter(is_advisory).collect();
    assert!(rows.len() > 10, "the table is there");
    for row in rows {
        let tests: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "{row}");
        for test in tests {
            assert!(sources.contains(&format!("fn {test}()")), "{test} does not exist: {row}");
        }
    }
}
