//! Credentials: the CRI's AuthConfig in all its forms, auth files, credential helpers, and that nobody reads them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bulkhead_proto::cri;
use bulkhead_tests::environment::Environment;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::images::busybox;
use bulkhead_tests::images::catalogue::Catalogue;
use bulkhead_tests::registry::{PASSWORD, Registry, USER};
use bulkhead_tests::suite::SuiteFixture;
use bulkhead_tests::token_server::{REFRESH_TOKEN, TokenServer};

/// A daemon with an auth file and helpers of its own, and registries that ask.
struct Asking {
    f: Fixture,
    password: Registry,
    token: Registry,
}

bulkhead_tests::suite!(
    Asking;
    user_and_password_in_both_forms,
    an_identity_token_is_exchanged,
    the_server_address_is_respected,
    the_auth_file_knows_namespaces,
    a_credential_helper_is_asked,
    a_helper_that_fails_is_told,
    no_secret_is_in_the_log,
);

impl SuiteFixture for Asking {
    fn start(environment: &Environment) -> Result<Self> {
        let busybox = busybox::find()?;
        let mut others = None;
        let f = Fixture::start_with(environment, |registry, settings| {
            let directory = settings.directory.clone();
            Catalogue::new(&busybox)?.push_demo(&registry.target())?;
            let password = Registry::start_with_password(&directory.join("password"))?;
            Catalogue::new(&busybox)?.push_demo(&password.target())?;
            let tokens = TokenServer::start(&directory.join("tokens"))?;
            let token = registry.with_lines(&directory.join("token"), &tokens.lines())?;
            settings.image.push_str(&format!("auth_files = [{:?}]\n", directory.join("auth.json")));
            settings.programs = Some(directory.join("helpers"));
            fs::create_dir_all(directory.join("helpers"))?;
            others = Some((password, token));
            Ok(())
        })?;
        let (password, token) = others.context("not prepared")?;
        Ok(Self { f, password, token })
    }

    fn after_case(&mut self, failed: bool) -> Result<()> {
        // The daemon reads it at each pull.
        fs::write(self.f.path("auth.json"), "{}")?;
        self.f.after_case(failed)
    }

    fn finish(self) -> Result<()> {
        drop((self.password, self.token));
        self.f.finish()
    }
}

/// Pulls with these credentials and removes the image again.
fn pull(f: &Fixture, name: &str, auth: Option<cri::AuthConfig>) -> Result<(), bulkhead_tests::cri::CallError> {
    let image = Some(cri::ImageSpec { image: name.to_owned(), ..Default::default() });
    f.cri().pull_image(cri::PullImageRequest { image: image.clone(), auth, sandbox_config: None })?;
    f.cri().remove_image(cri::RemoveImageRequest { image })?;
    Ok(())
}

fn refused(f: &Fixture, name: &str, auth: Option<cri::AuthConfig>, words: &[&str]) -> Result<()> {
    let error = pull(f, name, auth).err().with_context(|| format!("{name} was pulled"))?;
    for word in words {
        ensure!(error.message.contains(word), "{word:?} is not in {error}");
    }
    for secret in [PASSWORD, REFRESH_TOKEN] {
        ensure!(!error.message.contains(secret), "{error}");
    }
    Ok(())
}

fn pair() -> String {
    STANDARD.encode(format!("{USER}:{PASSWORD}"))
}

fn basic() -> cri::AuthConfig {
    cri::AuthConfig { username: USER.into(), password: PASSWORD.into(), ..Default::default() }
}

fn user_and_password_in_both_forms(a: &mut Asking) -> Result<()> {
    let name = a.password.image("busybox");
    refused(&a.f, &name, None, &["401", "no credentials"])?;
    pull(&a.f, &name, Some(basic()))?;
    pull(&a.f, &name, Some(cri::AuthConfig { auth: pair(), ..Default::default() }))?;
    let wrong = cri::AuthConfig { auth: STANDARD.encode("captain:nemo"), ..Default::default() };
    refused(&a.f, &name, Some(wrong), &["401", "captain"])?;
    refused(&a.f, &name, Some(cri::AuthConfig { auth: "%".into(), ..Default::default() }), &["base64"])
}

fn an_identity_token_is_exchanged(a: &mut Asking) -> Result<()> {
    let name = a.token.image("busybox");
    refused(&a.f, &name, None, &["401"])?;
    let with = |token: &str| Some(cri::AuthConfig { identity_token: token.into(), ..Default::default() });
    pull(&a.f, &name, with(REFRESH_TOKEN))?;
    refused(&a.f, &name, with("stolen"), &["an identity token", "the refresh token is not known"])?;
    refused(&a.f, &name, Some(cri::AuthConfig { registry_token: "x.y.z".into(), ..Default::default() }), &["401"])
}

fn the_server_address_is_respected(a: &mut Asking) -> Result<()> {
    let name = a.password.image("busybox");
    let to = |server: &str| Some(cri::AuthConfig { server_address: server.into(), ..basic() });
    pull(&a.f, &name, to(&format!("http://{}/v2/", a.password.address)))?;
    refused(&a.f, &name, to("other.test"), &["no credentials"])
}

fn the_auth_file_knows_namespaces(a: &mut Asking) -> Result<()> {
    let (host, name) = (&a.password.address, a.password.image("busybox"));
    let path = a.f.path("auth.json");
    fs::write(&path, format!("{{\"auths\": {{\"{host}/busybox\": {{\"auth\": \"{}\"}}}}}}", pair()))?;
    pull(&a.f, &name, None)?;
    refused(&a.f, &a.password.image("httpd"), None, &["no credentials"])?;
    let token = format!("{{\"auths\": {{\"{}\": {{\"identitytoken\": \"{REFRESH_TOKEN}\"}}}}}}", a.token.address);
    fs::write(&path, token)?;
    pull(&a.f, &a.token.image("busybox"), None)?;
    fs::write(&path, format!("{{\"auths\": {{\"{host}\": {{\"auth\": [\"{PASSWORD}\"]}}}}}}"))?;
    refused(&a.f, &name, None, &["auth.json", "line 1"])
}

/// Installs `docker-credential-NAME`.
fn helper(f: &Fixture, name: &str, script: &str) -> Result<()> {
    let path = f.path("helpers").join(format!("docker-credential-{name}"));
    fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
    Ok(fs::set_permissions(Path::new(&path), fs::Permissions::from_mode(0o755))?)
}

fn a_credential_helper_is_asked(a: &mut Asking) -> Result<()> {
    let (host, name) = (&a.password.address, a.password.image("busybox"));
    let answer = format!("{{\"ServerURL\": \"x\", \"Username\": \"{USER}\", \"Secret\": \"{PASSWORD}\"}}");
    helper(&a.f, "harbour", &format!("[ \"$1\" = get ] && [ \"$(cat)\" = {host} ] && echo '{answer}'"))?;
    let path = a.f.path("auth.json");
    fs::write(&path, format!("{{\"credHelpers\": {{\"{host}\": \"harbour\"}}}}"))?;
    pull(&a.f, &name, None)?;
    fs::write(&path, "{\"credsStore\": \"harbour\"}")?;
    pull(&a.f, &name, None)?;
    helper(&a.f, "empty", "cat >/dev/null; echo credentials not found in native keychain; exit 1")?;
    fs::write(&path, "{\"credsStore\": \"empty\"}")?;
    refused(&a.f, &name, None, &["no credentials"])?;
    let token = format!("{{\"Username\": \"<token>\", \"Secret\": \"{REFRESH_TOKEN}\"}}");
    helper(&a.f, "token", &format!("cat >/dev/null; echo '{token}'"))?;
    fs::write(&path, "{\"credsStore\": \"token\"}")?;
    pull(&a.f, &a.token.image("busybox"), None).context("by a helper's identity token")
}

fn a_helper_that_fails_is_told(a: &mut Asking) -> Result<()> {
    let (host, name) = (&a.password.address, a.password.image("busybox"));
    let path = a.f.path("auth.json");
    for (kind, script, word) in [
        ("broken", format!("echo {PASSWORD}; echo {PASSWORD} >&2; exit 3"), "exit status: 3"),
        ("chatty", format!("echo '{PASSWORD}'"), "not the JSON"),
        ("endless", "yes".to_owned(), "more than 65536 bytes"),
    ] {
        helper(&a.f, kind, &script)?;
        fs::write(&path, format!("{{\"credHelpers\": {{\"{host}\": \"{kind}\"}}}}"))?;
        refused(&a.f, &name, None, &[&format!("docker-credential-{kind}"), word])?;
    }
    fs::write(&path, format!("{{\"credHelpers\": {{\"{host}\": \"absent\"}}}}"))?;
    refused(&a.f, &name, None, &["docker-credential-absent", "No such file"])
}

fn no_secret_is_in_the_log(a: &mut Asking) -> Result<()> {
    let log = fs::read_to_string(a.f.daemon.log())?;
    ensure!(log.contains("image pulled"), "the log says nothing of pulls");
    for secret in [PASSWORD, REFRESH_TOKEN, &pair()] {
        ensure!(!log.contains(secret), "the log holds {secret:?}");
    }
    Ok(())
}
