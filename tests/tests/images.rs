//! Images: pulled, listed, inspected and removed, from open and from password-protected registries, good and bad ones.

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri;
use bulkhead_tests::faults::{Fault, FaultyRegistry};
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::images::catalogue::Catalogue;
use bulkhead_tests::images::{Image, Layer, busybox};
use bulkhead_tests::pod::Spec;
use bulkhead_tests::registry::{PASSWORD, Registry, USER};
use serde_json::json;

bulkhead_tests::suite!(
    Fixture;
    crictl_pulls_lists_inspects_and_removes,
    every_format_is_understood_and_runs,
    the_platform_is_chosen_from_an_index,
    a_digest_names_an_image_too,
    two_tags_are_one_image,
    an_absent_image_is_no_error_to_ask_for,
    an_image_in_use_stays_usable_until_its_container_is_gone,
    a_password_is_needed_and_used,
    an_image_that_does_not_exist_is_told,
    a_wrong_digest_is_told,
    no_matching_platform_is_told,
    a_layer_that_is_not_gzip_is_told,
    a_layer_with_another_content_than_promised_is_told,
    a_corrupt_blob_is_told,
    tar_entries_that_would_escape_are_told_or_kept_inside,
    a_registry_that_fails_is_told,
    a_registry_that_stops_halfway_is_told,
    the_image_file_system_is_measured,
);

fn crictl_pulls_lists_inspects_and_removes(f: &mut Fixture) -> Result<()> {
    let crictl = f.crictl()?;
    let name = f.registry.image("httpd");
    let said = crictl.ok(&["pull", &name])?;
    let listed = crictl.json(&["images", "-o", "json"])?;
    let images = listed["images"].as_array().context("no list")?;
    let image = images.iter().find(|i| i["repoTags"][0] == name.as_str()).with_context(|| format!("{listed:#}"))?;
    let id = image["id"].as_str().context("no id")?.to_owned();
    ensure!(said.contains(&id), "pull answered {said:?}, the id is {id}");
    ensure!(image["repoDigests"][0].as_str().is_some_and(|d| d.contains("httpd@sha256:")), "{image:#}");
    ensure!(image["size"].as_str().and_then(|s| s.parse::<u64>().ok()).is_some_and(|s| s > 100_000), "{image:#}");
    let inspected = crictl.json(&["inspecti", &name])?;
    ensure!(inspected["status"]["id"] == id.as_str(), "{inspected:#}");
    crictl.ok(&["rmi", &name])?;
    ensure!(!crictl.ok(&["images"])?.contains("httpd"), "the image is listed after rmi");
    ensure!(!crictl.run(&["rmi", &name])?.status.success() || f.cri().find_image(&name)?.is_none(), "it is gone");
    Ok(())
}

fn every_format_is_understood_and_runs(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("formats")?;
    for name in ["busybox", "zstd", "docker"] {
        let image = f.image(name)?;
        let outcome = pod.once(&Spec::shell(&image, "echo it runs"))?;
        ensure!(outcome.stdout == "it runs\n", "{name}: {outcome:?}");
        let pulled = f.cri().pull(&image)?;
        let id = f.cri().find_image(&image)?.context("the image is gone")?.id;
        ensure!(pulled == id && outcome.status.image_id == id, "{name}: {pulled}, {id}, {}", outcome.status.image_id);
    }
    Ok(())
}

fn the_platform_is_chosen_from_an_index(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("platform")?;
    let outcome = pod.once(&Spec::shell(&f.image("multi")?, "uname -m"))?;
    ensure!(outcome.code == 0 && !outcome.stdout.is_empty(), "{outcome:?}");
    Ok(())
}

fn a_digest_names_an_image_too(f: &mut Fixture) -> Result<()> {
    let image = f.cri().find_image(&f.image("busybox")?)?.context("not pulled")?;
    let digest = image.repo_digests.first().context("no digest")?;
    f.cri().pull(digest)?;
    let again = f.cri().find_image(digest)?.context("not found by digest")?;
    ensure!(again.id == image.id, "{again:?}");
    let by_id = f.cri().find_image(&image.id)?.context("not found by id")?;
    ensure!(by_id.id == image.id, "{by_id:?}");
    Ok(())
}

fn two_tags_are_one_image(f: &mut Fixture) -> Result<()> {
    let built =
        Catalogue::new(&busybox::find()?)?.image(json!({ "Cmd": ["sh"], "Labels": { "of": "two" } })).build()?;
    f.registry.target().push("tags", "first", &built)?;
    f.registry.target().push("tags", "second", &built)?;
    let (first, second) = (f.registry.image("tags:first"), f.registry.image("tags:second"));
    ensure!(f.cri().pull(&first)? == f.cri().pull(&second)?, "two ids");
    let image = f.cri().find_image(&first)?.context("not pulled")?;
    ensure!(image.repo_tags.len() == 2, "{image:?}");
    let spec = cri::ImageSpec { image: image.id.clone(), ..Default::default() };
    f.cri().remove_image(cri::RemoveImageRequest { image: Some(spec.clone()) })?;
    ensure!(f.cri().find_image(&second)?.is_none(), "a tag outlived its image");
    f.cri().remove_image(cri::RemoveImageRequest { image: Some(spec) })?;
    Ok(())
}

fn an_absent_image_is_no_error_to_ask_for(f: &mut Fixture) -> Result<()> {
    ensure!(f.cri().find_image(&f.registry.image("absent"))?.is_none(), "an image that was never pulled");
    Ok(())
}

fn an_image_in_use_stays_usable_until_its_container_is_gone(f: &mut Fixture) -> Result<()> {
    let name = f.image("httpd")?;
    let pod = f.pod("in-use")?;
    let container = pod.start(&Spec::shell(&name, "echo up; sleep 1000"))?;
    container.says("up")?;
    let spec = cri::ImageSpec { image: name.clone(), ..Default::default() };
    // Whether it is refused or put off, the container must not notice.
    let removed = f.cri().remove_image(cri::RemoveImageRequest { image: Some(spec) });
    if let Err(error) = &removed {
        ensure!(error.message.contains("in use") || error.message.contains(&container.id), "{error}");
    }
    let seen = container.exec(&["cat", "/www/index.html"])?;
    ensure!(seen.code == 0 && !seen.stdout.is_empty(), "{seen:?}");
    ensure!(container.exec(&["wc", "-c", "/bin/busybox"])?.code == 0, "a file that was not read before");
    Ok(())
}

fn a_password_is_needed_and_used(f: &mut Fixture) -> Result<()> {
    let directory = f.path("private-registry");
    std::fs::create_dir_all(&directory)?;
    let registry = Registry::start_with_password(&directory)?;
    Catalogue::new(&busybox::find()?)?.push_demo(&registry.target())?;
    let name = registry.image("busybox");
    let open = f.cri().pull(&name).err().context("it can be pulled without a password")?;
    ensure!(open.message.contains(&name) && says_unauthorized(&open.message), "{open}");
    let with = |password: &str| cri::PullImageRequest {
        image: Some(cri::ImageSpec { image: name.clone(), ..Default::default() }),
        auth: Some(cri::AuthConfig { username: USER.into(), password: password.into(), ..Default::default() }),
        sandbox_config: None,
    };
    let wrong = f.cri().pull_image(with("a wrong one")).err().context("a wrong password is taken")?;
    ensure!(says_unauthorized(&wrong.message) && !wrong.message.contains("a wrong one"), "{wrong}");
    f.cri().pull_image(with(PASSWORD))?;
    let crictl = f.crictl()?;
    let credentials = format!("{USER}:{PASSWORD}");
    crictl.ok(&["pull", "--creds", &credentials, &registry.image("httpd")])?;
    let spec = |name| cri::ImageSpec { image: registry.image(name), ..Default::default() };
    for name in ["busybox", "httpd"] {
        f.cri().remove_image(cri::RemoveImageRequest { image: Some(spec(name)) })?;
    }
    Ok(())
}

fn says_unauthorized(message: &str) -> bool {
    let message = message.to_lowercase();
    ["401", "unauthorized", "credentials", "password"].iter().any(|word| message.contains(word))
}

/// The message of a pull that must fail; it names the image.
fn refused(f: &Fixture, image: &str) -> Result<String> {
    let error = f.cri().pull(image).err().with_context(|| format!("{image} was pulled"))?;
    ensure!(error.message.contains(image), "the message does not name {image}: {error}");
    ensure!(f.cri().find_image(image)?.is_none(), "{image} is there after a failed pull");
    Ok(error.message)
}

fn an_image_that_does_not_exist_is_told(f: &mut Fixture) -> Result<()> {
    let message = refused(f, &f.registry.image("never-pushed"))?;
    ensure!(
        message.contains("not found") || message.contains("does not exist") || message.contains("404"),
        "{message}"
    );
    let message = refused(f, &f.registry.image("busybox:no-such-tag"))?;
    ensure!(message.contains("no-such-tag"), "{message}");
    let message = f.cri().pull("UPPER case is no name").err().context("a bad name was pulled")?.message;
    ensure!(message.contains("UPPER case is no name"), "{message}");
    Ok(())
}

fn a_wrong_digest_is_told(f: &mut Fixture) -> Result<()> {
    let digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let message = refused(f, &f.registry.image(&format!("busybox@{digest}")))?;
    ensure!(message.contains(digest), "{message}");
    Ok(())
}

fn no_matching_platform_is_told(f: &mut Fixture) -> Result<()> {
    let message = refused(f, &f.registry.image("arm64-only"))?;
    ensure!(message.contains("linux/amd64") && message.contains("arm64"), "{message}");
    Ok(())
}

fn a_layer_that_is_not_gzip_is_told(f: &mut Fixture) -> Result<()> {
    let message = refused(f, &f.registry.image("not-gzip"))?;
    ensure!(message.contains("gzip") && message.contains("sha256:"), "{message}");
    Ok(())
}

fn a_layer_with_another_content_than_promised_is_told(f: &mut Fixture) -> Result<()> {
    let message = refused(f, &f.registry.image("wrong-diff"))?;
    ensure!(message.contains("sha256:") && message.to_lowercase().contains("diff"), "{message}");
    Ok(())
}

fn a_corrupt_blob_is_told(f: &mut Fixture) -> Result<()> {
    let layer = Layer::new().file("only/here", 0o644, &vec![7; 300_000])?.finish()?;
    let built = Image::new(vec![layer], json!({})).build()?;
    f.registry.target().push("corrupt", "1", &built)?;
    let digest = &built.blobs[1].digest;
    f.registry.corrupt(digest)?;
    let message = refused(f, &f.registry.image("corrupt"))?;
    ensure!(message.contains(digest), "{message}");
    Ok(())
}

/// A tar header with a name that libraries refuse to write.
fn raw_entry(name: &str) -> Vec<u8> {
    let mut header = tar_header(name);
    header.resize(1024, 0);
    header[512..520].copy_from_slice(b"escaped\n");
    header.extend_from_slice(&[0; 1024]);
    header
}

fn tar_header(name: &str) -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    for (at, field) in
        [(100, "0000644\0"), (108, "0000000\0"), (116, "0000000\0"), (124, "00000000010\0"), (136, "00000000000\0")]
    {
        header[at..at + field.len()].copy_from_slice(field.as_bytes());
    }
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

fn tar_entries_that_would_escape_are_told_or_kept_inside(f: &mut Fixture) -> Result<()> {
    let catalogue = Catalogue::new(&busybox::find()?)?;
    for (tag, name) in [("dots", "../../escaped"), ("middle", "bin/../../escaped"), ("absolute", "/escaped")] {
        let mut image = catalogue.image(json!({ "Cmd": ["sh"] }));
        image.layers.push(bulkhead_tests::images::layer::LayerBytes(raw_entry(name)));
        f.registry.target().push("escape", tag, &image.build()?)?;
        let reference = f.registry.image(&format!("escape:{tag}"));
        match f.cri().pull(&reference) {
            Ok(_) => ensure!(tag == "absolute", "{name} was taken"),
            Err(error) => ensure!(error.message.contains("escaped"), "{name}: {error}"),
        }
    }
    ensure!(!std::path::Path::new("/escaped").exists(), "a layer wrote to the host");
    Ok(())
}

fn a_registry_that_fails_is_told(f: &mut Fixture) -> Result<()> {
    for status in [401, 429, 500] {
        let broken = FaultyRegistry::start(&f.registry.address, Fault::Status(status))?;
        let message = refused(f, &format!("{}/entrypoint:1", broken.address))?;
        ensure!(message.contains(&status.to_string()), "{message}");
        ensure!(broken.spoilt() > 0, "the fault was never met");
    }
    let nobody = refused(f, "127.0.0.1:9/nobody/listens:1")?;
    ensure!(nobody.contains("127.0.0.1:9") && nobody.to_lowercase().contains("refused"), "{nobody}");
    Ok(())
}

fn a_registry_that_stops_halfway_is_told(f: &mut Fixture) -> Result<()> {
    for fault in [Fault::CutOff, Fault::Stall] {
        let broken = FaultyRegistry::start(&f.registry.address, fault)?;
        let message = refused(f, &format!("{}/entrypoint:1", broken.address))?;
        ensure!(message.contains("sha256:") || message.contains(&broken.address), "{fault:?}: {message}");
    }
    // What was half there does not disturb a whole pull of the same layers.
    f.cri().pull(&f.registry.image("entrypoint"))?;
    Ok(())
}

fn the_image_file_system_is_measured(f: &mut Fixture) -> Result<()> {
    f.image("busybox")?;
    let info = f.cri().image_fs_info(cri::ImageFsInfoRequest::default())?;
    let first = info.image_filesystems.first().context("no file system")?;
    let used = first.used_bytes.as_ref().context("no used bytes")?.value;
    let point = first.fs_id.as_ref().context("no mount point")?.mountpoint.clone();
    ensure!(used > 1_000_000 && std::path::Path::new(&point).is_dir(), "{first:?}");
    Ok(())
}
