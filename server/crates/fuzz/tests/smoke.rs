//! A short search for inputs that panic, the same in every run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use fuzz::{TARGETS, Target};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

/// Mutations of an input to try, by how long a target takes.
const MUTATIONS: usize = 20_000;
const MUTATIONS_OF_FILES: usize = 500;
/// Changes of an input at a time.
const CHANGES_MAX: usize = 6;

fn corpus(target: Target) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(target.corpus);
    let entries = std::fs::read_dir(&directory).expect("every target has a corpus");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("it can be listed").path()).collect();
    paths.retain(|path| path.extension().is_none_or(|extension| extension != "md"));
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", directory.display());
    paths.iter().map(|path| std::fs::read(path).expect("a file")).collect()
}

/// Changes some bytes: flipped bits, extreme values, pieces removed, doubled, or taken from another.
fn mutate(input: &mut Vec<u8>, others: &[Vec<u8>], chance: &mut StdRng) {
    for _ in 0..chance.random_range(1..=CHANGES_MAX) {
        let at = chance.random_range(0..=input.len());
        let end = chance.random_range(at..=input.len().min(at + 64));
        match chance.random_range(0..6) {
            0 => drop(input.drain(at..end)),
            1 => {
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
            2 => {
                let other = others.choose(chance).expect("a corpus is not empty");
                let from = chance.random_range(0..=other.len());
                let piece = &other[from..other.len().min(from + 64)];
                input.splice(at..end, piece.iter().copied());
            }
            3 => input.insert(at, chance.random()),
            4 if at < input.len() => input[at] ^= 1 << chance.random_range(0..8),
            _ => {
                input[at..end].fill(*[0, 0xff, 0x7f, b'0', b'{', b'"'].choose(chance).expect("six"))
            }
        }
    }
}

fn fails(target: Target, input: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err()
}

fn search(target: Target, mutations: usize) {
    let corpus = corpus(target);
    for input in &corpus {
        assert!(!fails(target, input), "{}: an input of the corpus panics", target.name);
    }
    let mut chance = StdRng::seed_from_u64(1);
    for number in 0..mutations {
        let mut input = corpus.choose(&mut chance).expect("not empty").clone();
        mutate(&mut input, &corpus, &mut chance);
        if fails(target, &input) {
            let path = std::env::temp_dir().join(format!("{}-{number}", target.name));
            std::fs::write(&path, &input).expect("the input can be kept");
            panic!("{} panics: put {} into its corpus", target.name, path.display());
        }
    }
}

#[test]
fn no_mutation_of_a_known_input_makes_a_target_panic() {
    for target in TARGETS {
        let mutations = match target.name {
            "snapshot" | "go_wal" => MUTATIONS_OF_FILES,
            _ => MUTATIONS,
        };
        search(target, mutations);
    }
}
