//! The checked-in generated code is what the checked-in `.proto` files produce.
//!
//! `BULKHEAD_REGENERATE=1 cargo test -p bulkhead-proto --test regenerate` writes it anew.

use std::fs;
use std::path::{Path, PathBuf};

fn crate_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn generate_cri(out: &Path) {
    let protos = crate_dir().join("protos");
    let set = protox::compile([protos.join("cri.proto")], [&protos]).expect("cri.proto compiles");
    tonic_prost_build::configure()
        .out_dir(out)
        .emit_rerun_if_changed(false)
        .disable_comments(["."])
        .compile_fds(set)
        .expect("tonic generates");
    fs::rename(out.join("runtime.v1.rs"), out.join("cri.rs")).expect("one file per package");
}

fn generate_ttrpc(out: &Path, name: &str) {
    let protos = crate_dir().join("protos");
    ttrpc_codegen::Codegen::new()
        .out_dir(out)
        .inputs([protos.join(format!("{name}.proto"))])
        .include(&protos)
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize { async_all: true, ..Default::default() })
        .run()
        .expect("ttrpc generates");
}

#[test]
fn generated_code_is_current() {
    let scratch = tempfile::tempdir().expect("scratch directory");
    generate_cri(scratch.path());
    generate_ttrpc(scratch.path(), "agent");
    generate_ttrpc(scratch.path(), "vmm");
    generate_ttrpc(scratch.path(), "nri");
    let kept = crate_dir().join("src/gen");
    for name in ["cri.rs", "agent.rs", "agent_ttrpc.rs", "vmm.rs", "vmm_ttrpc.rs", "nri.rs", "nri_ttrpc.rs"] {
        let fresh = fs::read_to_string(scratch.path().join(name)).expect("generated");
        if std::env::var_os("BULKHEAD_REGENERATE").is_some() {
            fs::write(kept.join(name), &fresh).expect("src/gen is writable");
        }
        let stands = fs::read_to_string(kept.join(name)).unwrap_or_default();
        assert!(stands == fresh, "src/gen/{name} is stale: run with BULKHEAD_REGENERATE=1");
    }
}
