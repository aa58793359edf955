//! What is shipped names its dependencies, and all that builds or checks it is pinned.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

const DOCKERFILE: &str = include_str!("../../Dockerfile");

#[test]
fn every_python_package_is_pinned_by_hash() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci").read_dir().unwrap();
    let paths = folder.map(|file| file.unwrap().path());
    let mut packages = 0;
    for path in paths.filter(|path| path.extension().is_some_and(|extension| extension == "txt")) {
        let text = std::fs::read_to_string(&path).unwrap();
        let pins: Vec<_> = text.split("\n").filter(|line| !line.starts_with(['#', ' '])).collect();
        for pin in pins.into_iter().filter(|line| !line.is_empty()) {
            let (name, version) = pin.split_once("==").unwrap_or_else(|| panic!("{pin}"));
            assert!(
                version.ends_with(" \\"),
                "{path:?}: {name} has no hash: scripts/hash-requirements.sh"
            );
            packages += 1;
        }
    }
    assert!(packages > 50, "only {packages} packages were found");
    let gate = include_str!("../../.ci/run");
    assert_eq!(gate.matches("pip --python").count(), gate.matches("--require-hashes").count());
}

#[test]
fn the_image_has_provenance_notices_and_the_list_of_its_dependencies() {
    let tool = "cargo-auditable@0.7.7";
    for text in [DOCKERFILE, include_str!("../../.ci/run")] {
        assert!(text.contains(tool), "{tool}");
    }
    for (stage, build) in [("FROM gcr.io", "build"), (" AS local\n", "build-local")] {
        let image = DOCKERFILE.rsplit(stage).next().unwrap().split("FROM ").next().unwrap();
        let copied = format!("\nCOPY --from={build} /build/third-party-notices.txt.gz /\n");
        assert!(image.contains(&copied), "{image}");
    }
    assert!(include_str!("../../cloudbuild.yaml").contains(" --provenance=mode=max --push "));
}

#[test]
fn the_notices_have_a_license_of_every_shipped_crate() {
    let shipped = noticed_crates(&[]);
    assert!(!shipped.contains("clap") && shipped.len() > 100, "{shipped:?}");
    let local = noticed_crates(&["--features", "local"]);
    assert!(local.contains("clap") && local.is_superset(&shipped), "{local:?}");
}

/// The crates whose notices the script prints.
fn noticed_crates(arguments: &[&str]) -> BTreeSet<String> {
    let output = Command::new("scripts/notices.sh")
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let notices = String::from_utf8_lossy(&output.stdout);
    let mut names = BTreeSet::new();
    for part in notices.split("\n==== ").skip(1) {
        let (name, license) = part.lines().next().unwrap().split_once(": ").unwrap();
        // Some crates have no file. The text of this license is there for others.
        let has_text = ["\n---- ", "\nCopyright"].iter().any(|text| part.contains(text))
            || license.split(" OR ").any(|one| one == "Apache-2.0");
        assert!(has_text, "{name}: {license}");
        names.insert(name.split(' ').next().unwrap().to_owned());
    }
    for name in ["musl", "hyper", "ring", "mimalloc", "google-cloud-auth"] {
        assert!(names.contains(name), "{name} is missing in {names:?}");
    }
    for text in [
        "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION",
        // The allocator's C code.
        "Microsoft Corporation, Daan Leijen",
    ] {
        assert!(notices.contains(text), "{text}");
    }
    names
}
