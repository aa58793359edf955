//! Every input of the corpus, and mutations of it: what must hold for any input, as `fuzz/src/targets.rs` says.
//!
//! `fuzz/run TARGET` searches for more inputs, with coverage.

use crate::support::random::Rng;

#[path = "../../fuzz/src/targets.rs"]
mod targets;

const FRAGMENTS: &str = include_str!("../../fuzz/fragments.dict");

/// Runs a target over its corpus and `mutations` changed inputs, the same ones every time.
fn check(name: &str, mutations: u64) {
    let (_, target) = targets::TARGETS.iter().find(|(target, _)| *target == name).unwrap();
    let fragments = entries(FRAGMENTS);
    let corpus = corpus(name);
    assert!(corpus.len() > 2, "{name}: the corpus is missing");
    let run = |input: &[u8], place: String| {
        let result = std::panic::catch_unwind(|| target(input));
        assert!(result.is_ok(), "{name}, {place}: {}", input.escape_ascii());
    };
    for (number, input) in corpus.iter().enumerate() {
        run(input, format!("input {number}"));
    }
    for seed in 0..mutations {
        let mut rng = Rng::new(seed);
        // Most inputs of the corpus are short, and long ones hold more to change.
        let some = [(); 4].map(|()| rng.below(corpus.len()));
        let longest = some.into_iter().max_by_key(|number| corpus[*number].len()).unwrap();
        let mut input = corpus[longest].clone();
        change(&mut input, &corpus, &fragments, &mut rng);
        run(&input, format!("seed {seed}"));
    }
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let path = format!("{}/fuzz/corpus/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    entries(&std::fs::read_to_string(path).unwrap())
}

/// The entries of a dictionary of libFuzzer, and of a corpus: one a line, in quotes, with escapes.
fn entries(text: &str) -> Vec<Vec<u8>> {
    let quoted = text.lines().filter_map(|line| line.strip_prefix('"')?.strip_suffix('"'));
    quoted.map(unescaped).collect()
}

fn unescaped(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        bytes.push(match (byte, byte == b'\\') {
            (_, true) => match rest.next().unwrap() {
                b'x' => {
                    let digits = [rest.next().unwrap(), rest.next().unwrap()];
                    u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                }
                other => other,
            },
            (byte, false) => byte,
        });
    }
    bytes
}

/// Changes an input as a careless sender or a broken network would, up to six times.
fn change(input: &mut Vec<u8>, corpus: &[Vec<u8>], fragments: &[Vec<u8>], rng: &mut Rng) {
    for _ in 0..=rng.below(6) {
        let (at, other) = (rng.below(input.len() + 1), rng.below(input.len() + 1));
        let (from, to) = (at.min(other), at.max(other));
        match rng.below(7) {
            0 => input.truncate(at),
            1 if at < input.len() => input[at] = rng.next() as u8,
            2 if at < input.len() => input[at] ^= 1 << rng.below(8),
            3 => {
                input.drain(from..to.min(from + 16));
            }
            4 if input.len() < 4096 => {
                let copy = input[from..to].to_vec();
                input.splice(at..at, copy);
            }
            5 => {
                let donor = &corpus[rng.below(corpus.len())];
                let start = rng.below(donor.len() + 1);
                let end = (start + rng.below(64)).min(donor.len());
                input.splice(from..to.min(from + 8), donor[start..end].iter().copied());
            }
            _ => {
                let fragment = &fragments[rng.below(fragments.len())];
                input.splice(at..at, fragment.iter().copied());
            }
        }
    }
}

macro_rules! targets {
    ($($name:ident: $mutations:literal;)*) => {
        $(#[test] fn $name() { check(stringify!($name), $mutations); })*

        #[test]
        fn every_target_is_run() {
            let names: Vec<_> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
            let millions = (0 $(+ $mutations)*) as f64 / 1e6;
            let page = include_str!("../../docs/reliability.md");
            let row = format!("\n| {millions:.2} million mutated inputs of the parsers | ");
            assert!(page.contains(&row), "the page lacks:{row}");
        }
    };
}

targets! {
    body: 400000;
    credentials: 200000;
    env: 200000;
    error: 150000;
    event: 100000;
    extractor: 150000;
    gemini: 250000;
    imagen: 400000;
    proxy: 200000;
}
