//! Names and registries: registries.conf, certs.d, hosts.toml, and what they do to PullImage, ImageStatus and RemoveImage.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri;
use bulkhead_tests::certificates::{self, Signed};
use bulkhead_tests::daemon::Settings;
use bulkhead_tests::environment::Environment;
use bulkhead_tests::faults::{Fault, FaultyRegistry};
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::images::busybox;
use bulkhead_tests::images::catalogue::Catalogue;
use bulkhead_tests::registry::Registry;
use bulkhead_tests::suite::SuiteFixture;

/// A daemon that knows the fixture's registry by many names.
struct World {
    f: Fixture,
    /// Cuts every layer off in the middle.
    faulty: FaultyRegistry,
    /// Serves the same images to clients with a certificate.
    guarded: Registry,
    /// Serves them to all, with a certificate that nobody knows.
    unknown: Registry,
}

bulkhead_tests::suite!(
    World;
    short_names_and_aliases,
    a_mirror_that_fails_is_passed_over,
    a_mirror_for_digests,
    prefixes_are_rewritten,
    a_blocked_registry_is_not_asked,
    a_client_certificate_from_certs_d,
    an_insecure_registry,
    hosts_of_containerd,
    a_changed_file_is_read_on_sighup,
);

impl SuiteFixture for World {
    fn start(environment: &Environment) -> Result<Self> {
        let busybox = busybox::find()?;
        let mut others = None;
        let f = Fixture::start_with(environment, |registry, settings| {
            Catalogue::new(&busybox)?.push(&registry.target())?;
            let directory = settings.directory.clone();
            let signed = certificates::signed(&directory.join("tls"), "both")?;
            let guarded = registry.with_tls(&directory.join("guarded"), &signed, true)?;
            let unknown = registry.with_tls(&directory.join("unknown"), &signed, false)?;
            let faulty = FaultyRegistry::start(&registry.address, Fault::CutOff)?;
            configure(settings, registry, &faulty, &signed, [&guarded.address, &unknown.address])?;
            others = Some((faulty, guarded, unknown));
            Ok(())
        })?;
        let (faulty, guarded, unknown) = others.context("not prepared")?;
        Ok(Self { f, faulty, guarded, unknown })
    }

    fn after_case(&mut self, failed: bool) -> Result<()> {
        self.f.after_case(failed)
    }

    fn finish(self) -> Result<()> {
        drop((self.guarded, self.unknown));
        self.f.finish()
    }
}

fn configure(
    settings: &mut Settings,
    registry: &Registry,
    faulty: &FaultyRegistry,
    signed: &Signed,
    [guarded, unknown]: [&str; 2],
) -> Result<()> {
    let directory = settings.directory.join("etc");
    let (conf, certs, hosts) =
        (directory.join("registries.conf"), directory.join("certs.d"), directory.join("hosts.d"));
    let (open, cut) = (&registry.address, &faulty.address);
    let (_, port) = unknown.split_once(':').context("no port")?;
    write(
        &conf,
        &format!(
            "unqualified-search-registries = [\"{open}\"]\n\
             [[registry]]\nprefix = \"mirrored.test\"\nlocation = \"{open}\"\n\
             [[registry.mirror]]\nlocation = \"127.0.0.1:9\"\n[[registry.mirror]]\nlocation = \"{cut}\"\n\
             [[registry]]\nprefix = \"digest.test\"\nlocation = \"127.0.0.1:9\"\n\
             [[registry.mirror]]\nlocation = \"{open}\"\npull-from-mirror = \"digest-only\"\n\
             [[registry]]\nprefix = \"insecure.test\"\nlocation = \"localhost:{port}\"\ninsecure = true\n"
        ),
    )?;
    let drop_in = format!(
        "[aliases]\n\"ship\" = \"{open}/busybox\"\n\
         [[registry]]\nprefix = \"*.wild.test/team\"\nlocation = \"{open}\"\n\
         [[registry]]\nprefix = \"blocked.test\"\nlocation = \"{open}\"\nblocked = true\n"
    );
    write(&directory.join("registries.conf.d/10-more.conf"), &drop_in)?;

    let Signed { authority, certificate, key } = signed;
    let own = certs.join(guarded);
    fs::create_dir_all(&own)?;
    for (from, to) in [(authority, "ca.crt"), (certificate, "client.cert"), (key, "client.key")] {
        fs::copy(from, own.join(to))?;
    }
    let text = format!(
        "server = \"http://127.0.0.1:9\"\n[host.\"http://{cut}\"]\n[host.\"https://{guarded}\"]\nca = {authority:?}\n\
         client = [[{certificate:?}, {key:?}]]\n[host.\"https://{guarded}\".header]\nx-from = [\"bulkhead\"]\n"
    );
    write(&hosts.join("hosts.test/hosts.toml"), &text)?;
    settings.image.push_str(&format!("registries_conf = {conf:?}\ncerts_dirs = [{certs:?}]\nhosts_dir = {hosts:?}\n"));
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::create_dir_all(path.parent().context("no directory")?)?;
    Ok(fs::write(path, text)?)
}

fn remove(f: &Fixture, name: &str) -> Result<()> {
    let image = Some(cri::ImageSpec { image: name.to_owned(), ..Default::default() });
    f.cri().remove_image(cri::RemoveImageRequest { image })?;
    ensure!(f.cri().find_image(name)?.is_none(), "{name} is there after it was removed");
    Ok(())
}

/// Pulls an image that has the name afterwards, and removes it.
fn pulls(f: &Fixture, name: &str) -> Result<()> {
    f.cri().pull(name)?;
    let image = f.cri().find_image(name)?.with_context(|| format!("{name} is not found"))?;
    let named = image.repo_tags.iter().chain(&image.repo_digests).any(|known| known == name);
    ensure!(named, "{name} is not among {image:?}");
    remove(f, name)
}

fn refused(f: &Fixture, name: &str, words: &[&str]) -> Result<()> {
    let error = f.cri().pull(name).err().with_context(|| format!("{name} was pulled"))?;
    for word in words {
        ensure!(error.message.contains(word), "{word:?} is not in {error}");
    }
    Ok(())
}

fn short_names_and_aliases(w: &mut World) -> Result<()> {
    let f = &w.f;
    f.cri().pull("busybox:1")?;
    let image = f.cri().find_image("busybox:1")?.context("not found by its short name")?;
    ensure!(image.repo_tags == [f.registry.image("busybox:1")], "{image:?}");
    let alias = f.cri().find_image("ship:1")?.context("not found by its alias")?;
    ensure!(alias.id == image.id, "{alias:?}");
    remove(f, "ship:1")?;
    f.cri().pull("ship:1")?;
    remove(f, &f.registry.image("busybox:1"))?;
    refused(f, "absent-everywhere:1", &["absent-everywhere", &f.registry.address])
}

fn a_mirror_that_fails_is_passed_over(w: &mut World) -> Result<()> {
    let before = w.faulty.spoilt();
    pulls(&w.f, "mirrored.test/entrypoint:1")?;
    ensure!(w.faulty.spoilt() > before, "the second mirror was not asked");
    // The reason of each place is told.
    refused(&w.f, "mirrored.test/absent:1", &["absent", &w.f.registry.address, "127.0.0.1:9", &w.faulty.address])
}

fn a_mirror_for_digests(w: &mut World) -> Result<()> {
    let f = &w.f;
    refused(f, "digest.test/busybox:1", &["127.0.0.1:9"])?;
    let digest = f.cri().find_image(&f.image("busybox")?)?.context("not pulled")?.repo_digests;
    let (_, digest) = digest.first().and_then(|name| name.split_once('@')).context("no digest")?;
    remove(f, &f.registry.image("busybox"))?;
    pulls(f, &format!("digest.test/busybox@{digest}"))
}

fn prefixes_are_rewritten(w: &mut World) -> Result<()> {
    pulls(&w.f, "a.b.wild.test/team/busybox:1")?;
    refused(&w.f, "wild.test/team/busybox:1", &["wild.test"])
}

fn a_blocked_registry_is_not_asked(w: &mut World) -> Result<()> {
    refused(&w.f, "blocked.test/busybox:1", &["blocked.test", "is blocked in registries.conf"])
}

fn a_client_certificate_from_certs_d(w: &mut World) -> Result<()> {
    pulls(&w.f, &w.guarded.image("busybox"))?;
    // The same registry by a name without certificates.
    let elsewhere = w.guarded.image("busybox").replace("127.0.0.1", "localhost");
    refused(&w.f, &elsewhere, &["localhost", "certificate"])
}

fn an_insecure_registry(w: &mut World) -> Result<()> {
    refused(&w.f, &w.unknown.image("busybox"), &["certificate"])?;
    pulls(&w.f, "insecure.test/busybox:1")
}

fn hosts_of_containerd(w: &mut World) -> Result<()> {
    let before = w.faulty.spoilt();
    pulls(&w.f, "hosts.test/busybox:1")?;
    ensure!(w.faulty.spoilt() > before, "the first host was not asked");
    Ok(())
}

fn a_changed_file_is_read_on_sighup(w: &mut World) -> Result<()> {
    let path = w.f.path("etc/registries.conf.d/20-late.conf");
    let late = format!("[[registry]]\nprefix = \"late.test\"\nlocation = {:?}\n", w.f.registry.address);
    // What cannot be read is told, and changes nothing.
    write(&path, "[[registry]]\nblokced = true\n")?;
    w.f.daemon.reload("blokced")?;
    pulls(&w.f, "a.b.wild.test/team/busybox:1")?;
    write(&path, &late)?;
    w.f.daemon.reload("read again")?;
    pulls(&w.f, "late.test/busybox:1")
}
