//! Volumes: what the host has under a path, the container has too, at once and with the same rights.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::wait;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

bulkhead_tests::suite!(
    Fixture;
    a_directory_is_shared_both_ways,
    a_read_only_volume_cannot_be_written,
    a_single_file_is_mounted,
    a_config_map_changes_under_a_running_pod,
    an_empty_dir_on_disk_is_shared_by_containers,
    an_empty_dir_in_memory_is_a_tmpfs,
    owners_and_modes_are_kept,
    names_and_links_cannot_leave_the_volume,
    a_missing_host_path_is_told,
);

fn directory(f: &Fixture, name: &str) -> Result<PathBuf> {
    let path = f.path("volumes").join(name);
    fs::create_dir_all(&path)?;
    Ok(path)
}

fn a_directory_is_shared_both_ways(f: &mut Fixture) -> Result<()> {
    let host = directory(f, "shared")?;
    fs::write(host.join("before"), "from the host")?;
    let pod = f.pod("shared")?;
    let script = "cat /data/before; echo from the guest > /data/after; mkdir /data/sub; echo up; sleep 1000";
    let container = pod.start(&f.shell(script)?.mount(&host, "/data", false))?;
    container.says("up")?;
    ensure!(container.lines()?[0].text.starts_with("from the host"), "{:?}", container.lines()?);
    ensure!(fs::read_to_string(host.join("after"))? == "from the guest\n", "what the guest wrote");
    ensure!(host.join("sub").is_dir(), "the guest's directory");
    fs::write(host.join("sub/later"), "written while it runs")?;
    let seen = wait::until("the host's new file in the guest", Duration::from_secs(10), || {
        let seen = container.exec(&["cat", "/data/sub/later"])?;
        Ok((seen.code == 0).then_some(seen.stdout))
    })?;
    ensure!(seen == "written while it runs", "{seen}");
    let data: Vec<u8> = (0..1_500_000_u32).map(|n| n.to_le_bytes()[(n % 4) as usize]).collect();
    fs::write(host.join("large"), &data)?;
    let copied = container.exec(&["cp", "/data/large", "/data/copy"])?;
    ensure!(copied.code == 0 && fs::read(host.join("copy"))? == data, "a large file: {copied:?}");
    Ok(())
}

fn a_read_only_volume_cannot_be_written(f: &mut Fixture) -> Result<()> {
    let host = directory(f, "readonly")?;
    fs::write(host.join("file"), "kept")?;
    let pod = f.pod("readonly")?;
    let script = "cat /data/file; echo x > /data/file; rm /data/file; mount -o remount,rw /data; touch /data/new; true";
    // Who may mount on the host's kernel may remount, too; a guest's kernel is not asked.
    let add_capabilities = if f.environment.handler.is_machine() { vec!["ALL".into()] } else { Vec::new() };
    let spec = f.shell(script)?.mount(&host, "/data", true).security(|c| {
        c.capabilities = Some(cri::Capability { add_capabilities, ..Default::default() });
    });
    let outcome = pod.once(&spec)?;
    ensure!(outcome.stdout.starts_with("kept"), "{outcome:?}");
    ensure!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
    ensure!(fs::read_to_string(host.join("file"))? == "kept" && !host.join("new").exists(), "the host's files changed");
    Ok(())
}

fn a_single_file_is_mounted(f: &mut Fixture) -> Result<()> {
    let host = directory(f, "single")?.join("hosts");
    fs::write(&host, "10.0.0.1 one-file\n")?;
    let pod = f.pod("single")?;
    let spec = f.shell("cat /etc/hosts /deep/down/file; echo added >> /etc/hosts")?;
    let spec = spec.mount(&host, "/etc/hosts", false).mount(&host, "/deep/down/file", true);
    let outcome = pod.once(&spec)?;
    ensure!(outcome.stdout == "10.0.0.1 one-file\n10.0.0.1 one-file\n", "{outcome:?}");
    ensure!(fs::read_to_string(&host)?.ends_with("added\n"), "what the guest appended");
    Ok(())
}

/// As the kubelet's atomic writer does it: data in a dated directory, a link to that, links to the files.
fn write_version(volume: &std::path::Path, version: u32) -> Result<()> {
    let dated = volume.join(format!("..version{version}"));
    fs::create_dir(&dated)?;
    fs::write(dated.join("key"), format!("value {version}"))?;
    symlink(format!("..version{version}"), volume.join("..data_tmp"))?;
    fs::rename(volume.join("..data_tmp"), volume.join("..data"))?;
    Ok(())
}

fn a_config_map_changes_under_a_running_pod(f: &mut Fixture) -> Result<()> {
    let host = directory(f, "config")?;
    write_version(&host, 1)?;
    symlink("..data/key", host.join("key"))?;
    let pod = f.pod("config")?;
    let container = pod.start(&f.shell("cat /config/key; echo; sleep 1000")?.mount(&host, "/config", true))?;
    container.says("value 1")?;
    for version in 2..5 {
        write_version(&host, version)?;
        fs::remove_dir_all(host.join(format!("..version{}", version - 1)))?;
        wait::until(&format!("value {version} in the guest"), Duration::from_secs(10), || {
            Ok((container.exec(&["cat", "/config/key"])?.stdout == format!("value {version}")).then_some(()))
        })?;
    }
    Ok(())
}

fn an_empty_dir_on_disk_is_shared_by_containers(f: &mut Fixture) -> Result<()> {
    let host = directory(f, "empty")?;
    let pod = f.pod("empty")?;
    let writer = f.shell("echo from the writer > /cache/file; echo done; sleep 1000")?.named("writer");
    pod.start(&writer.mount(&host, "/cache", false))?.says("done")?;
    let reader = f.shell("cat /elsewhere/file")?.named("reader").mount(&host, "/elsewhere", false);
    let outcome = pod.once(&reader)?;
    ensure!(outcome.stdout == "from the writer\n", "{outcome:?}");
    Ok(())
}

fn an_empty_dir_in_memory_is_a_tmpfs(f: &mut Fixture) -> Result<()> {
    // The kubelet's emptyDirs are known by this path component; any other tmpfs of the host is shared as it is.
    let host = directory(f, "kubernetes.io~empty-dir/memory")?;
    mount("tmpfs", &host, "tmpfs", MountFlags::empty(), Some(c"size=8m,mode=1777"))?;
    let result = memory_volume(f, &host);
    unmount(&host, UnmountFlags::DETACH)?;
    result
}

fn memory_volume(f: &Fixture, host: &std::path::Path) -> Result<()> {
    let pod = f.pod("memory")?;
    let script = "grep ' /fast ' /proc/mounts | cut -d' ' -f3; df -k /fast | tail -n1 | awk '{print $2}'; \
                  echo shared > /fast/file; echo done; sleep 1000";
    let container = pod.start(&f.shell(script)?.named("writer").mount(host, "/fast", false))?;
    container.says("done")?;
    let lines = container.lines()?;
    ensure!(lines[0].text == "tmpfs", "file system {}", lines[0].text);
    ensure!(lines[1].text == "8192", "size {} KiB", lines[1].text);
    let reader = f.shell("cat /other/file")?.named("reader").mount(host, "/other", false);
    ensure!(pod.once(&reader)?.stdout == "shared\n", "the second container sees another tmpfs");
    Ok(())
}

fn owners_and_modes_are_kept(f: &mut Fixture) -> Result<()> {
    let host = directory(f, "owners")?;
    fs::write(host.join("secret"), "s")?;
    fs::set_permissions(host.join("secret"), fs::Permissions::from_mode(0o400))?;
    std::os::unix::fs::chown(host.join("secret"), Some(1000), Some(2000))?;
    fs::set_permissions(&host, fs::Permissions::from_mode(0o2777))?;
    let pod = f.pod("owners")?;
    let spec = f.shell(
        "stat -c '%u:%g %a' /data/secret; chown 77:88 /data/mine 2>/dev/null; touch /data/mine; chown 77:88 /data/mine",
    )?;
    let outcome = pod.once(&spec.mount(&host, "/data", false))?;
    ensure!(outcome.stdout == "1000:2000 400\n", "{outcome:?}");
    let mine = fs::metadata(host.join("mine"))?;
    use std::os::unix::fs::MetadataExt;
    ensure!((mine.uid(), mine.gid()) == (77, 88), "{}:{}", mine.uid(), mine.gid());
    let other = f.shell("cat /data/secret")?.security(|c| c.run_as_user = Some(cri::Int64Value { value: 1001 }));
    let outcome = pod.once(&other.mount(&host, "/data", false))?;
    ensure!(outcome.code != 0 && outcome.stderr.contains("ermission denied"), "another user reads it: {outcome:?}");
    Ok(())
}

fn names_and_links_cannot_leave_the_volume(f: &mut Fixture) -> Result<()> {
    let host = directory(f, "jail")?;
    fs::write(f.path("volumes").join("outside"), "not for the guest")?;
    symlink("../outside", host.join("relative"))?;
    symlink(f.path("volumes").join("outside"), host.join("absolute"))?;
    let pod = f.pod("jail")?;
    let spec = f.shell("cat /data/relative /data/absolute /data/../outside; true")?.mount(&host, "/data", false);
    let outcome = pod.once(&spec)?;
    ensure!(!outcome.stdout.contains("not for the guest"), "{outcome:?}");
    Ok(())
}

fn a_missing_host_path_is_told(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("missing")?;
    let missing = f.path("volumes").join("never-made");
    let error = pod.start(&f.shell("true")?.mount(&missing, "/data", false)).err().context("it runs")?;
    ensure!(error.message.contains(&missing.display().to_string()), "{error}");
    ensure!(error.message.contains("does not exist") || error.message.contains("No such file"), "{error}");
    Ok(())
}
