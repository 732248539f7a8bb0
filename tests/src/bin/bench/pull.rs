//! PullImage beside the pair of programs that does the same with a directory as its result.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bulkhead_proto::cri;
use bulkhead_tests::command;
use bulkhead_tests::environment::in_path;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::images::catalogue;

use super::table::{Row, Unit};

const LAYERS: usize = 5;
const BYTES: usize = 200 << 20;
const LIMIT: Duration = Duration::from_secs(300);

/// Pulls the image `rounds` times with each.
pub fn measure(fixture: &Fixture, rounds: usize) -> Result<Vec<Row>> {
    let mut ours = Row::new("PullImage, 200 MiB in 5 layers", Unit::Milliseconds);
    let mut pair = Row::new("skopeo copy + umoci unpack", Unit::Milliseconds);
    let mut ratio = Row::new("PullImage / that pair", Unit::Ratio).goal("at most 0.5 x");
    let programs = ["skopeo", "umoci"].iter().all(|program| in_path(program).is_some());
    eprintln!("pull: building the image");
    fixture.registry.target().push("bulk", "1", &catalogue::bulk(LAYERS, BYTES / LAYERS)?)?;
    for number in 1..=rounds {
        eprintln!("pull: round {number} of {rounds}");
        let mine = pull(fixture)?;
        ours.add_time(mine);
        if programs {
            let theirs = copy_and_unpack(fixture)?;
            pair.add_time(theirs);
            ratio.add(mine.as_secs_f64() / theirs.as_secs_f64());
        }
    }
    if !programs {
        eprintln!("skipped: the comparison of pulls: skopeo or umoci is not in PATH");
    }
    Ok(vec![ours, pair, ratio])
}

/// A pull that finds nothing of the image in the store.
fn pull(fixture: &Fixture) -> Result<Duration> {
    let name = fixture.registry.image("bulk");
    let spec = cri::ImageSpec { image: name.clone(), ..Default::default() };
    fixture.cri().remove_image(cri::RemoveImageRequest { image: Some(spec) })?;
    let store = fixture.daemon.settings.root.join("images");
    let left = size(&store);
    ensure!(
        left < BYTES as u64 / 4,
        "{left} bytes are in the store after the image's removal, so a pull proves nothing"
    );
    let started = Instant::now();
    fixture.cri().pull(&name)?;
    Ok(started.elapsed())
}

/// Bytes that the files below `directory` take on disk.
fn size(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

fn copy_and_unpack(fixture: &Fixture) -> Result<Duration> {
    let directory = fixture.path("pair");
    fs::create_dir_all(&directory)?;
    let layout = directory.join("layout").display().to_string();
    let bundle = directory.join("bundle").display().to_string();
    let source = format!("docker://{}", fixture.registry.image("bulk"));
    let target = format!("oci:{layout}:1");
    let started = Instant::now();
    command::run("skopeo", &["copy", "--quiet", "--src-tls-verify=false", &source, &target], LIMIT)?.success()?;
    command::run("umoci", &["unpack", "--image", &format!("{layout}:1"), &bundle], LIMIT)?.success()?;
    let took = started.elapsed();
    fs::remove_dir_all(&directory)?;
    Ok(took)
}
