//! Builds the ghost (see `ghost/ghost.rs`): a static program without any library, embedded in this crate.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=ghost/ghost.rs");
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("ghost");
    let target = std::env::var("TARGET").expect("cargo sets TARGET");
    let compiler = std::env::var_os("RUSTC").expect("cargo sets RUSTC");
    let status = Command::new(compiler)
        .args(["--edition", "2024", "--crate-type", "bin", "--crate-name", "ghost", "--target"])
        .arg(target)
        .args(["-C", "panic=abort", "-C", "opt-level=s", "-C", "relocation-model=static"])
        .args(["-C", "strip=symbols", "-C", "link-arg=-nostdlib", "-C", "link-arg=-nostartfiles"])
        .args(["-C", "link-arg=-static", "-C", "link-arg=-no-pie"])
        .arg("-Clink-arg=-Wl,--build-id=none,-z,noseparate-code,-z,norelro,-z,max-page-size=4096")
        .arg("-o")
        .arg(&out)
        .arg("ghost/ghost.rs")
        .status()
        .expect("start the Rust compiler for the ghost");
    assert!(status.success(), "the ghost (crates/sys/ghost/ghost.rs) does not compile: {status}");
}
