//! Container logs as a kubelet rotates and reads them, and on a disk that is full.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::logs::{self, Line};
use bulkhead_tests::pod::{Container, Pod};
use bulkhead_tests::wait;

bulkhead_tests::suite!(
    Fixture;
    rotation_under_load_loses_and_doubles_no_line,
    long_lines_are_cut_and_the_last_needs_no_end,
    a_full_disk_loses_whole_lines_and_holds_nobody_up,
);

const LIMIT: Duration = Duration::from_secs(120);

fn read(path: &Path) -> Result<Vec<Line>> {
    logs::parse(&String::from_utf8_lossy(&fs::read(path)?)).with_context(|| path.display().to_string())
}

fn reopen(f: &Fixture, container: &Container) -> Result<()> {
    Ok(f.cri().reopen_container_log(cri::ReopenContainerLogRequest { container_id: container.id.clone() }).map(drop)?)
}

fn grows(path: &Path) -> Result<()> {
    wait::until("lines in the new log", LIMIT, || Ok((fs::metadata(path)?.len() > 0).then_some(())))
}

fn rotation_under_load_loses_and_doubles_no_line(f: &mut Fixture) -> Result<()> {
    const ROTATIONS: usize = 10;
    let pod = f.pod("rotate")?;
    let script = "n=0; until [ -e /stop ] || [ $n -ge 5000000 ]; do seq $n $((n + 999)); n=$((n + 1000)); sleep 0.01; done; \
                  echo end $n";
    let container = pod.start(&f.shell(script)?)?;
    let mut files = Vec::new();
    for number in 0..ROTATIONS {
        grows(&container.log)?;
        let rotated = container.log.with_extension(number.to_string());
        fs::rename(&container.log, &rotated)?;
        reopen(f, &container)?;
        // What came before is in the old file by now, and nothing comes after.
        files.push((fs::metadata(&rotated)?.len(), rotated));
    }
    container.exec(&["touch", "/stop"])?;
    ensure!(container.finish()?.code == 0, "{:?}", container.status()?);
    let mut lines = Vec::new();
    for (length, file) in &files {
        ensure!(fs::metadata(file)?.len() == *length, "{} grew after its rotation", file.display());
        lines.extend(read(file)?);
    }
    lines.extend(container.lines()?);
    let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
    let (last, numbers) = texts.split_last().context("no lines")?;
    ensure!(*last == format!("end {}", numbers.len()), "{} lines and {last:?}", numbers.len());
    let wrong = numbers.iter().enumerate().find(|(number, text)| **text != number.to_string());
    ensure!(wrong.is_none(), "{wrong:?} among {} lines", numbers.len());
    ensure!(lines.iter().all(|line| line.full), "a short line was cut");
    Ok(())
}

fn long_lines_are_cut_and_the_last_needs_no_end(f: &mut Fixture) -> Result<()> {
    const RECORD: usize = 16 * 1024;
    let pod = f.pod("long")?;
    let script = "head -c 40000 /dev/zero | tr '\\0' x; echo; echo short; printf 'no end'";
    let container = pod.start(&f.shell(script)?)?;
    ensure!(container.finish()?.code == 0, "{:?}", container.status()?);
    let found: Vec<(bool, usize)> = container.lines()?.iter().map(|line| (line.full, line.text.len())).collect();
    let expected = [(false, RECORD), (false, RECORD), (true, 40_000 - 2 * RECORD), (true, 5), (false, 6)];
    ensure!(found == expected, "{found:?}");
    Ok(())
}

/// A small file system, most of it taken by a file; gone with the value.
struct SmallDisk {
    path: PathBuf,
    ballast: PathBuf,
}

impl SmallDisk {
    fn mount(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path)?;
        let flags = rustix::mount::MountFlags::NOSUID;
        rustix::mount::mount("tmpfs", &path, "tmpfs", flags, Some(c"size=1048576"))?;
        let disk = Self { ballast: path.join("ballast"), path };
        fs::write(&disk.ballast, vec![0; 700_000])?;
        Ok(disk)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What still holds a log open lets go of it with its pod.
        let _ = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
    }
}

fn a_full_disk_loses_whole_lines_and_holds_nobody_up(f: &mut Fixture) -> Result<()> {
    let mut config = f.pod_config("full");
    let disk = SmallDisk::mount(f.path("full-disk"))?;
    config.log_directory = disk.path.join("logs").to_string_lossy().into_owned();
    let pod = Pod::run(f.cri(), config, "")?;
    let script = "seq 100000; touch /written; until [ -e /go ]; do sleep 0.1; done; seq 200000 200999; echo after";
    let container = pod.start(&f.shell(script)?)?;
    wait::until("the end of the first lines", LIMIT, || {
        Ok((container.exec(&["test", "-e", "/written"])?.code == 0).then_some(()))
    })?;
    // Neither the daemon nor the agent waits for the disk.
    let asked = Instant::now();
    ensure!(f.cri().containers()?.len() == 1 && container.exec(&["echo", "well"])?.stdout == "well\n", "no answers");
    ensure!(asked.elapsed() < Duration::from_secs(30), "answers took {:?}", asked.elapsed());
    fs::remove_file(&disk.ballast)?;
    container.exec(&["touch", "/go"])?;
    let outcome = container.finish()?;
    ensure!(outcome.code == 0, "{:?}", outcome.status);
    let numbers: Vec<u64> = outcome.stdout.lines().filter_map(|line| line.parse().ok()).collect();
    let (before, after): (Vec<u64>, Vec<u64>) = numbers.iter().partition(|number| **number <= 100_000);
    ensure!(before.windows(2).all(|pair| pair[0] < pair[1]), "lines are doubled or out of order");
    let whole = before.iter().zip(1..).take_while(|(number, wanted)| **number == *wanted).count();
    ensure!((1000..100_000).contains(&whole), "{whole} lines before the disk was full");
    ensure!(before.len() < 100_000, "nothing was lost: the disk was not full");
    ensure!(after.iter().copied().eq(200_000..201_000), "{} lines after space was freed", after.len());
    ensure!(outcome.stdout.ends_with("after\n"), "the last line");
    let log = fs::read_to_string(f.daemon.log())?;
    ensure!(log.contains("log lines were lost"), "the daemon does not say that lines were lost");
    pod.remove()?;
    Ok(())
}
