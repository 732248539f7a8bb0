//! Bad input gets a clear error: what was tried, on what, why it failed, what to do. And nothing is left of it.
//!
//! Images that cannot be pulled are in `images.rs`, networks that cannot be made in `network.rs`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri;
use bulkhead_tests::command;
use bulkhead_tests::daemon::{Daemon, Settings};
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::images::{Image, Layer};
use bulkhead_tests::leaks::host;
use bulkhead_tests::pod::{Pod, Spec};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::json;

bulkhead_tests::suite!(
    Fixture;
    an_unknown_handler,
    a_pod_without_a_name,
    a_namespace_of_the_host,
    what_is_the_hosts_in_a_container,
    an_annotation_that_is_not_allowed,
    an_image_that_was_not_pulled,
    a_command_that_is_not_in_the_image,
    a_container_without_a_pod,
    a_missing_host_path,
    an_unknown_key_in_the_configuration,
    a_default_handler_that_is_not_configured,
    a_cgroup_driver_that_is_not_there,
    a_slice_without_systemd,
    a_second_daemon_on_the_same_root,
    a_kernel_that_does_not_exist,
    a_kernel_that_is_none,
    a_guest_without_an_agent,
    a_vm_that_dies_while_it_runs,
    a_full_disk,
    a_client_without_a_daemon,
);

/// Why cases of a guest's kernel or initramfs do not run.
const NO_GUEST: &str = "pods of this handler boot nothing";

/// The message has every word.
fn says(message: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(message.contains(word), "{word:?} is not in {message:?}");
    }
    Ok(())
}

fn an_unknown_handler(f: &mut Fixture) -> Result<()> {
    let error = Pod::run(f.cri(), f.pod_config("handler"), "kata-fc").err().context("it runs")?;
    says(&error.message, &["cannot run", "\"kata-fc\"", "qemu", "[runtimes.kata-fc]"])?;
    ensure!(f.cri().pods()?.is_empty(), "a sandbox is left");
    f.assert_nothing_left()
}

fn a_pod_without_a_name(f: &mut Fixture) -> Result<()> {
    let config = cri::PodSandboxConfig { metadata: None, ..f.pod_config("none") };
    let error = Pod::run(f.cri(), config, "").err().context("it runs")?;
    ensure!(error.code == tonic::Code::InvalidArgument, "{error}");
    says(&error.message, &["metadata.name"])
}

fn a_namespace_of_the_host(f: &mut Fixture) -> Result<()> {
    f.environment.needs_machine("pods of this handler are given the host's namespaces")?;
    let mut config = f.pod_config("host");
    let options = cri::NamespaceOption { network: cri::NamespaceMode::Node as i32, ..Default::default() };
    let context = cri::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    config.linux.get_or_insert_default().security_context = Some(context);
    let error = Pod::run(f.cri(), config, "").err().context("it runs")?;
    says(&error.message, &["namespace_options.network", f.environment.handler.name(), "handler \"native\" can"])
}

/// Devices, propagation and processes of the host, asked for by a container of a VM.
fn what_is_the_hosts_in_a_container(f: &mut Fixture) -> Result<()> {
    f.environment.needs_machine("pods of this handler are given what is the host's")?;
    let pod = f.pod("host-access")?;
    let device =
        cri::Device { host_path: "/dev/fuse".into(), container_path: "/dev/fuse".into(), permissions: "r".into() };
    let of_node = cri::NamespaceOption { pid: cri::NamespaceMode::Node as i32, ..Default::default() };
    let bidirectional = cri::Mount {
        host_path: "/tmp".into(),
        container_path: "/x".into(),
        propagation: cri::MountPropagation::PropagationBidirectional as i32,
        ..Default::default()
    };
    let plain = f.shell("true")?;
    let cdi = cri::CdiDevice { name: "vendor.example/thing=0".into() };
    let annotation = ("cdi.k8s.io/plugin".to_owned(), cdi.name.clone());
    for (field, spec) in [
        ("CDI_devices", plain.clone().with(|config| config.cdi_devices.push(cdi))),
        ("the annotation cdi.k8s.io/plugin", plain.clone().with(|config| config.annotations.extend([annotation]))),
        ("devices", plain.clone().with(|config| config.devices.push(device))),
        ("namespace_options.pid", plain.clone().security(|context| context.namespace_options = Some(of_node))),
        ("mount.propagation", plain.with(|config| config.mounts.push(bidirectional))),
    ] {
        let error = pod.create(&spec).err().context("it was created")?;
        says(&error.message, &[field, "a VM cannot give", "handler \"native\" can"])?;
    }
    Ok(())
}

/// Annotations of ours change a handler's options only where the handler allows it; the handler's names are told.
fn an_annotation_that_is_not_allowed(f: &mut Fixture) -> Result<()> {
    let mut config = f.pod_config("annotated");
    config.annotations.insert("bulkhead.dev/memory-mib".into(), "512".into());
    let error = Pod::run(f.cri(), config, "").err().context("it runs")?;
    says(&error.message, &["bulkhead.dev/memory-mib", "not allowed", f.environment.handler.name()])?;
    let status = f.cri().status(cri::StatusRequest::default())?;
    let names: Vec<&str> = status.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
    for name in ["", "qemu", "native"] {
        ensure!(names.contains(&name), "{name:?} is not among {names:?}");
    }
    Ok(())
}

fn an_image_that_was_not_pulled(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("image")?;
    let name = f.registry.image("never-pulled");
    let error = pod.create(&Spec::new(&name, &["true"])).err().context("it is created")?;
    says(&error.message, &[&name, "pull"])?;
    ensure!(f.cri().containers()?.is_empty(), "a container is left");
    Ok(())
}

fn a_command_that_is_not_in_the_image(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("command")?;
    let image = f.image("busybox")?;
    let container = pod.create(&Spec::new(&image, &["no-such-program", "--flag"]));
    let message = match &container {
        Err(error) => error.message.clone(),
        Ok(container) => container.start().err().context("it starts")?.message,
    };
    says(&message, &["no-such-program"])?;
    let message = message.to_lowercase();
    ensure!(message.contains("no such file") || message.contains("not found"), "{message}");
    let running = f.cri().containers()?.into_iter().find(|c| c.state == cri::ContainerState::ContainerRunning as i32);
    ensure!(running.is_none(), "{running:?}");
    Ok(())
}

fn a_container_without_a_pod(f: &mut Fixture) -> Result<()> {
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: "feedfacefeedfacefeedfacefeedface".into(),
        config: Some(Spec::new(&f.image("busybox")?, &["true"]).0),
        sandbox_config: Some(f.pod_config("none")),
    };
    let error = f.cri().create_container(request).err().context("it is created")?;
    ensure!(error.code == tonic::Code::NotFound, "{error}");
    says(&error.message, &["feedface"])
}

fn a_missing_host_path(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("path")?;
    let missing = f.path("nothing/here");
    let error = pod.create(&f.shell("true")?.mount(&missing, "/data", true)).err().context("it is created")?;
    says(&error.message, &[&missing.display().to_string(), "/data"])?;
    ensure!(f.cri().containers()?.is_empty(), "a container is left");
    Ok(())
}

/// Settings of another daemon in a directory of its own.
fn other(f: &Fixture, name: &str) -> Settings {
    Settings::new(&f.environment, &f.network, &f.path(name))
}

fn an_unknown_key_in_the_configuration(f: &mut Fixture) -> Result<()> {
    let mut settings = other(f, "unknown-key");
    settings.more = "[daemon2]\nx = 1\n".into();
    says(&Daemon::refused(&f.environment, &settings)?, &["config.toml", "daemon2"])?;
    settings.more = String::new();
    settings.image = "mirrorz = []\n".into();
    let said = Daemon::refused(&f.environment, &settings)?;
    let line = settings.text().lines().position(|line| line.starts_with("mirrorz")).context("no such line")? + 1;
    says(&said, &["mirrorz", &format!("line {line}"), &settings.file().display().to_string()])
}

fn a_default_handler_that_is_not_configured(f: &mut Fixture) -> Result<()> {
    let settings = other(f, "default-handler");
    settings.write()?;
    let text = settings
        .text()
        .replace(&format!("default_runtime = {:?}", f.environment.handler.name()), "default_runtime = \"runc\"");
    fs::write(settings.file(), text)?;
    let arguments = ["serve".to_owned(), "--config".to_owned(), settings.file().display().to_string()];
    let said = command::run(&f.environment.bulkhead, &arguments, Duration::from_secs(30))?.failure()?;
    says(&said, &["default_runtime", "runc", "qemu"])
}

fn a_cgroup_driver_that_is_not_there(f: &mut Fixture) -> Result<()> {
    if Path::new("/run/systemd/private").exists() {
        bulkhead_tests::skip!("systemd runs this host; the suite systemd is about the driver");
    }
    let settings = other(f, "driver");
    let drop_ins = settings.directory.join("config.d");
    fs::create_dir_all(&drop_ins)?;
    fs::write(drop_ins.join("10-driver.toml"), "[daemon]\ncgroup_driver = \"systemd\"\n")?;
    says(
        &Daemon::refused(&f.environment, &settings)?,
        &["cannot reach systemd", "/run/systemd/private", "cgroup_driver"],
    )
}

fn a_slice_without_systemd(f: &mut Fixture) -> Result<()> {
    let mut config = f.pod_config("slice");
    config.linux.get_or_insert_default().cgroup_parent = "kubepods-besteffort-pod1.slice".into();
    let error = Pod::run(f.cri(), config, "").err().context("it runs")?;
    says(&error.message, &["cgroup_parent", "kubepods-besteffort-pod1.slice", "daemon.cgroup_driver is \"cgroupfs\""])?;
    f.assert_nothing_left()
}

fn a_second_daemon_on_the_same_root(f: &mut Fixture) -> Result<()> {
    let settings = Settings { root: f.daemon.settings.root.clone(), ..other(f, "second") };
    let said = Daemon::refused(&f.environment, &settings)?;
    says(&said, &[&settings.root.display().to_string()])?;
    ensure!(said.contains("another") || said.contains("already"), "{said}");
    f.cri().version(cri::VersionRequest::default()).context("the first daemon suffered")?;
    Ok(())
}

/// The message of a sandbox on a daemon of its own, of which nothing may be left then.
fn sandbox_refused(f: &Fixture, settings: Settings) -> Result<String> {
    let directory = settings.directory.clone();
    let mut daemon = Daemon::start(&f.environment, settings)?;
    let started = Instant::now();
    let error = Pod::run(&daemon.cri, f.pod_config("boot"), "").err().context("it runs")?;
    ensure!(started.elapsed() < Duration::from_secs(60), "the error took {:?}", started.elapsed());
    ensure!(daemon.cri.pods()?.is_empty(), "a sandbox is left");
    ensure!(host::names(directory.join("run/sandboxes")).is_empty(), "a run directory is left");
    ensure!(host::cgroups_below(&f.cgroup).is_empty(), "a cgroup is left");
    ensure!(f.network.taken_addresses().is_empty(), "an address is left");
    daemon.stop()?;
    Ok(error.message)
}

fn a_kernel_that_does_not_exist(f: &mut Fixture) -> Result<()> {
    f.environment.needs_machine(NO_GUEST)?;
    let settings = Settings { kernel: f.path("no-kernel/vmlinux"), ..other(f, "no-kernel") };
    fs::create_dir_all(f.path("no-kernel"))?;
    settings.write()?;
    // Refusing to start is as clear as refusing the first pod.
    let kernel = settings.kernel.display().to_string();
    let message = match Daemon::refused_or_started(&f.environment, &settings)? {
        Some(said) => said,
        None => sandbox_refused(f, settings)?,
    };
    says(&message, &[&kernel])
}

fn a_kernel_that_is_none(f: &mut Fixture) -> Result<()> {
    f.environment.needs_machine(NO_GUEST)?;
    let kernel = f.path("garbage-vmlinux");
    fs::write(&kernel, b"this is no kernel\n".repeat(5000))?;
    let message = sandbox_refused(f, Settings { kernel: kernel.clone(), ..other(f, "garbage-kernel") })?;
    says(&message, &["boot"])?;
    ensure!(message.len() > 60, "no reason: {message}");
    Ok(())
}

fn a_guest_without_an_agent(f: &mut Fixture) -> Result<()> {
    f.environment.needs_machine(NO_GUEST)?;
    let initramfs = f.path("garbage-initramfs");
    fs::write(&initramfs, b"this is no archive\n".repeat(100))?;
    let message = sandbox_refused(f, Settings { initramfs, ..other(f, "garbage-initramfs-daemon") })?;
    says(&message, &["boot"])?;
    ensure!(message.to_lowercase().contains("panic") || message.contains("init"), "the kernel's words: {message}");
    Ok(())
}

fn a_vm_that_dies_while_it_runs(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("dies")?;
    let container = pod.start(&f.shell("echo up; sleep 1000")?)?;
    container.says("up")?;
    let cgroup = host::cgroup_directory(&f.cgroup).context("no cgroup v2")?.join(format!("bulkhead-{}", pod.id));
    fs::write(cgroup.join("cgroup.kill"), "1")?;
    let status = container.ended(Duration::from_secs(20))?;
    ensure!(status.exit_code != 0, "{status:?}");
    ensure!(pod.status()?.state == cri::PodSandboxState::SandboxNotready as i32, "{:?}", pod.status()?);
    let error = pod.create(&f.shell("true")?.named("late")).err().context("a dead pod takes a container")?;
    says(&error.message, &[&pod.id])?;
    let error = container.exec(&["true"]).err().context("exec in a dead pod")?;
    ensure!(!error.message.is_empty(), "{error}");
    pod.remove()?;
    f.assert_nothing_left()
}

fn a_full_disk(f: &mut Fixture) -> Result<()> {
    let settings = other(f, "full-disk");
    fs::create_dir_all(&settings.root)?;
    // Room for the daemon's own files (a formatted scratch template is sparse), none for the image.
    mount("tmpfs", &settings.root, "tmpfs", MountFlags::empty(), Some(c"size=48m"))?;
    let root = settings.root.clone();
    let result = full_disk(f, settings);
    unmount(&root, UnmountFlags::DETACH)?;
    result
}

fn full_disk(f: &Fixture, settings: Settings) -> Result<()> {
    let mut content = vec![0_u8; 80 << 20];
    let mut seed = 1_u32;
    for byte in &mut content {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = seed.to_le_bytes()[3];
    }
    let layer = Layer::new().file("large", 0o644, &content)?.finish()?;
    f.registry.target().push("large", "1", &Image::new(vec![layer], json!({})).build()?)?;
    let root = settings.root.clone();
    let mut daemon = Daemon::start(&f.environment, settings)?;
    let name = f.registry.image("large");
    let error = daemon.cri.pull(&name).err().context("80 MiB fit into 48")?;
    says(&error.message, &[&name, "disk full", &root.display().to_string(), "remove images"])?;
    // What was written of it is given back: a small image still fits.
    daemon.cri.pull(&f.registry.image("busybox")).with_context(|| listing(&root))?;
    daemon.stop()
}

fn listing(directory: &Path) -> String {
    host::files_below(directory, 4).join("\n")
}

fn a_client_without_a_daemon(f: &mut Fixture) -> Result<()> {
    let socket = f.path("nobody.sock").display().to_string();
    let said = f.daemon.client(&["run", "--socket", &socket, "busybox"])?.failure()?;
    says(&said, &[&socket])?;
    ensure!(said.contains("bulkhead serve") || said.contains("daemon"), "what to do: {said}");
    Ok(())
}
