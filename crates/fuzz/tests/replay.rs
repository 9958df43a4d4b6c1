//! Seeds and regressions of all targets, without a fuzzer.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tailwater_fuzz::{TARGETS, Target};

/// Of all committed seeds.
const SEED_BYTES_MAX: u64 = 64 << 10;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

/// The files in a folder, sorted; none when there is no folder.
fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<_> = entries.map(|entry| entry.expect("a readable entry").path()).collect();
    found.retain(|path| path.is_file());
    found.sort();
    found
}

fn run(target: &Target, path: &Path) -> bool {
    // Shown when the check panics.
    eprintln!("{}: {}", target.name, path.display());
    (target.check)(&fs::read(path).expect("a readable input"))
}

/// With `WRITE_SEEDS=1` the committed files are made anew.
#[test]
fn seeds_reach_what_their_decoders_are_for() {
    for target in TARGETS {
        let dir = fuzz().join("seeds").join(target.name);
        let made = (target.seeds)();
        if std::env::var_os("WRITE_SEEDS").is_some() {
            fs::create_dir_all(&dir).expect("a folder");
            files(&dir).iter().for_each(|path| fs::remove_file(path).expect("removed"));
            for (at, seed) in made.iter().enumerate() {
                fs::write(dir.join(format!("{at:02}")), seed).expect("written");
            }
        }
        for (at, seed) in made.iter().enumerate() {
            assert!((target.check)(seed), "{}: seed {at} is not what its decoder is for", target.name);
        }
        let committed = files(&dir);
        assert_eq!(committed.len(), made.len(), "{}: run this with WRITE_SEEDS=1", target.name);
        for path in committed {
            assert!(run(target, &path), "{} is not what its decoder is for", path.display());
        }
    }
    let bytes = TARGETS.iter().flat_map(|target| files(&fuzz().join("seeds").join(target.name)));
    let bytes: u64 = bytes.map(|path| fs::metadata(path).expect("a file").len()).sum();
    assert!(bytes <= SEED_BYTES_MAX, "seeds of {bytes} bytes");
}

#[test]
fn what_was_once_found_stays_fixed() {
    for target in TARGETS {
        for path in files(&fuzz().join("regressions").join(target.name)) {
            run(target, &path);
        }
    }
}

#[test]
fn inputs_without_sense_are_refused_by_all() {
    let noise: Vec<u8> = (0..=u8::MAX).rev().cycle().take(600).collect();
    for target in TARGETS {
        for input in [&[][..], &[0], &[0xff; 40], &noise] {
            let _known = (target.check)(input);
        }
        // Each seed cut off everywhere, and with each of its first bytes changed.
        for seed in (target.seeds)() {
            for at in 0..seed.len().min(64) {
                let _known = (target.check)(&seed[..at]);
                let mut changed = seed.clone();
                changed[at] ^= 0x55;
                let _known = (target.check)(&changed);
            }
        }
    }
}

#[test]
fn every_target_has_its_program_and_its_folders() {
    let known: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    let names = |dir: &str| -> BTreeSet<String> {
        let Ok(entries) = fs::read_dir(fuzz().join(dir)) else { return BTreeSet::new() };
        let stem = |path: PathBuf| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        entries.filter_map(|entry| stem(entry.expect("a readable entry").path())).collect()
    };
    assert_eq!(names("fuzz_targets"), known);
    assert_eq!(names("seeds"), known);
    assert!(names("regressions").is_subset(&known), "{:?}", names("regressions"));
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).expect("the manifest of the programs");
    for name in &known {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "fuzz/Cargo.toml has no program {name}");
    }
}
