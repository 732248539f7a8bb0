//! `bulkhead serve`: the daemon.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;

use crate::config::{CgroupDriver, Config, SandboxerKind};
use crate::cri::server;
use crate::image::Images;
use crate::network::PodNetwork;
use crate::node::Node;
use crate::nri::Nri;
use crate::sandbox::scratch::ScratchTemplate;
use crate::sandboxer::monitor::{self, HostAbilities};
use crate::store::Store;
use crate::{check, container, sandbox, streaming, sys};

pub(super) fn serve(path: Option<&Path>) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_new(&config.daemon.log).context("daemon.log")?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match sys::open_files::raise() {
        Ok((before, now)) => tracing::info!(before, now, "descriptors that may be open at once (RLIMIT_NOFILE)"),
        Err(error) => tracing::warn!(%error, "cannot raise the limit of open descriptors (RLIMIT_NOFILE)"),
    }
    // What a crash would write to the disk holds pull secrets.
    if !config.daemon.core_dumps {
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
            .context("cannot forbid core dumps")?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(config))
}

async fn run(config: Config) -> anyhow::Result<()> {
    for dir in [&config.daemon.root, &config.daemon.run] {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let _lock = sys::lock::LockFile::acquire(&config.daemon.root.join("daemon.lock"))?;
    let socket = config.daemon.socket.clone();
    let (endpoint, clients) = streaming::bind(&config.streaming).await?;
    let node = Arc::new(node(config, endpoint).await?);
    node.events.attach(&node);
    container::load(&node)?;
    sandbox::recover(&node).await?;
    container::recover(&node).await;
    node.nri.serve(&node).await?;
    tokio::spawn(streaming::serve(node.clone(), clients));
    tokio::spawn(reload_at_hangup(node.images.clone())?);
    let listener = server::bind(&socket)?;
    tracing::info!(socket = %socket.display(), version = env!("CARGO_PKG_VERSION"), "serving CRI v1");
    let nri = node.nri.clone();
    server::serve(node, listener, &socket, stop_signal()?).await?;
    nri.stop().await;
    // Pods run on: the next daemon finds them.
    std::fs::remove_file(&socket).ok();
    Ok(())
}

async fn node(config: Config, streaming: streaming::Endpoint) -> anyhow::Result<Node> {
    let abilities = abilities().await;
    tell_default_handler(&config, &abilities);
    warn_of_emulation(&config, &abilities);
    let store = Store::open(&config.daemon.root.join("state.redb"))?;
    let images = Images::open(config.image.clone()).await?;
    let network = PodNetwork::new(crate::network::Settings {
        config_directory: config.network.conf_dir.clone(),
        plugin_directories: config.network.bin_dirs.clone(),
        record_directory: config.daemon.root.join("cni"),
        root: config.daemon.root.clone(),
        plugin_limit: std::time::Duration::from_secs(config.network.timeout_s),
    });
    let (root, mib) = (config.daemon.root.clone(), config.guest.scratch_mib);
    let scratch = tokio::task::spawn_blocking(move || ScratchTemplate::prepare(&root, mib)).await??;
    if config.daemon.cgroup_driver == CgroupDriver::Systemd {
        tokio::task::spawn_blocking(crate::systemd::check).await??;
    }
    let cgroups = match sys::cgroup::Hierarchy::discover() {
        Ok(hierarchy) => Some(hierarchy),
        Err(error) => {
            tracing::warn!(error = %crate::error_text(&error), "pods get no cgroup on this host");
            None
        }
    };
    Ok(Node {
        container_file_system: container_file_system(&config, scratch.directory()),
        vmm: beside(&config.guest.vmm, "bulkhead-vmm")?,
        file_server: beside(&config.guest.file_server, "bulkhead-fs")?,
        boot_id: sys::host::boot_id().context("cannot read the host's boot id")?,
        store,
        images,
        network,
        abilities,
        scratch,
        streaming,
        cgroups,
        nri: Nri::new(config.nri.clone()),
        events: Default::default(),
        users: Default::default(),
        sandboxes: Default::default(),
        containers: Default::default(),
        sandbox_creations: Default::default(),
        container_creations: Default::default(),
        config,
    })
}

/// The kubelet compares mount points to tell whether images and containers share a disk.
fn container_file_system(config: &Config, scratch: &Path) -> PathBuf {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let images = config.image.root.as_path();
    if device(images) == device(scratch) { images.to_owned() } else { scratch.to_owned() }
}

/// A configured path, or the program beside this one.
fn beside(configured: &Path, name: &str) -> anyhow::Result<PathBuf> {
    if !configured.as_os_str().is_empty() {
        return Ok(configured.to_owned());
    }
    Ok(std::env::current_exe().context("cannot find the daemon's own binary")?.with_file_name(name))
}

async fn abilities() -> HostAbilities {
    let started = std::time::Instant::now();
    let result = tokio::task::spawn_blocking(check::kvm_selftest::run_patiently).await;
    let kvm_time = started.elapsed();
    let tsc_khz = tokio::task::spawn_blocking(sys::tsc::frequency_khz).await.ok().flatten();
    let kvm_reason = match result {
        Ok(Ok(passed)) => {
            tracing::info!(us = passed.as_micros(), "KVM self-test passed");
            None
        }
        Ok(Err(error)) => Some(crate::error_text(&error)),
        Err(_) => Some("the self-test crashed".into()),
    };
    let no_user_namespaces = match tokio::task::spawn_blocking(sys::userns::probe).await {
        Ok(probed) => probed.err().map(|error| crate::error_text(&error)),
        Err(_) => Some("the test of user namespaces crashed".into()),
    };
    if let Some(why) = &no_user_namespaces {
        tracing::warn!(why, "pods on this host's kernel can have no user namespace");
    }
    let kvm = kvm_reason.is_none();
    HostAbilities { kvm, kvm_time, kvm_reason: kvm_reason.unwrap_or_default(), tsc_khz, no_user_namespaces }
}

fn tell_default_handler(config: &Config, abilities: &HostAbilities) {
    let handler = monitor::default_handler(config, abilities);
    let is_own = config.runtimes.get(handler).is_some_and(|found| found.sandboxer == SandboxerKind::Microvm);
    if abilities.kvm || is_own {
        tracing::info!(handler, "the default runtime handler");
    } else {
        tracing::warn!(
            handler,
            reason = abilities.kvm_reason,
            "KVM cannot run machines of our own here; pods that name no handler get this one"
        );
    }
}

fn warn_of_emulation(config: &Config, abilities: &HostAbilities) {
    for (name, handler) in &config.runtimes {
        if monitor::emulates(handler, abilities) {
            tracing::warn!(
                handler = name,
                reason = abilities.kvm_reason,
                "PODS OF THIS HANDLER ARE EMULATED IN SOFTWARE (TCG): NO SECURITY BOUNDARY"
            );
        }
    }
}

/// SIGHUP: the files of the image service are read again.
fn reload_at_hangup(images: Images) -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        while hangup.recv().await.is_some() {
            match images.reload().await {
                Ok(()) => tracing::info!("SIGHUP: registries.conf was read again"),
                Err(error) => tracing::error!(error = %crate::error_text(&error), "SIGHUP: all stays as it was"),
            }
        }
    })
}

fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("told to stop; pods run on");
    })
}
