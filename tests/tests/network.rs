//! The pod's network: reachable from the host and from other pods, and clear words when it cannot be made.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri;
use bulkhead_tests::daemon::CNI_TIMEOUT_S;
use bulkhead_tests::environment::Handler;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::http;
use bulkhead_tests::images::catalogue::PAGE;
use bulkhead_tests::pod::{Pod, Spec};
use bulkhead_tests::wait;
use serde_json::{Value, json};

bulkhead_tests::suite!(
    Fixture;
    a_pod_answers_http_from_the_host,
    pods_reach_each_other_and_the_host,
    large_transfers_arrive_whole,
    a_machine_of_two_processors_has_two_queues,
    the_resolver_comes_from_the_network_without_a_dns_config,
    a_plugin_that_fails_is_told_in_its_own_words,
    a_plugin_that_hangs_is_ended,
    a_plugin_that_is_missing_is_told,
    a_missing_configuration_is_told,
    a_broken_configuration_is_told,
);

/// Longest wait for a web server that first writes what it serves, in an emulated machine.
const SERVER_LIMIT: Duration = Duration::from_secs(60);

/// A pod with a web server that answers.
fn web(f: &Fixture, name: &str) -> Result<Pod> {
    let pod = f.pod(name)?;
    pod.start(&Spec::new(&f.image("httpd")?, &[]))?;
    let address = format!("{}:80", pod.address()?);
    wait::until_ok("the web server", SERVER_LIMIT, || http::get(&address, "/"))?;
    Ok(pod)
}

fn a_pod_answers_http_from_the_host(f: &mut Fixture) -> Result<()> {
    let pod = web(f, "web")?;
    let answer = http::get(&format!("{}:80", pod.address()?), "/index.html")?;
    ensure!(answer.status == 200 && answer.text() == PAGE, "{answer:?}");
    Ok(())
}

fn pods_reach_each_other_and_the_host(f: &mut Fixture) -> Result<()> {
    let server = web(f, "server")?;
    let client = f.pod("client")?;
    ensure!(client.address()? != server.address()?, "two pods have one address");
    let script = format!(
        "wget -q -O - http://{}/ && ping -c 1 -W 5 {} >/dev/null && echo host",
        server.address()?,
        f.network.gateway()
    );
    let outcome = client.once(&f.shell(&script)?)?;
    ensure!(outcome.stdout == format!("{PAGE}host\n"), "{outcome:?}");
    let inside = client
        .once(&f.shell("ip -4 -o addr show eth0; ip route; cat /sys/class/net/eth0/mtu; ip -o link show lo")?)?
        .stdout;
    ensure!(inside.contains(&format!("{}/24", client.address()?)), "{inside}");
    ensure!(inside.contains(&format!("default via {}", f.network.gateway())), "{inside}");
    ensure!(inside.contains("1500") && inside.contains("LOOPBACK,UP"), "{inside}");
    Ok(())
}

fn large_transfers_arrive_whole(f: &mut Fixture) -> Result<()> {
    const SIZE: usize = 20 << 20;
    let pod = f.pod("large")?;
    let script = format!("mkdir /tmp/w; head -c {SIZE} /dev/zero > /tmp/w/zeros; exec httpd -f -p 80 -h /tmp/w");
    pod.start(&Spec::shell(&f.image("httpd")?, &script))?;
    let address = format!("{}:80", pod.address()?);
    let answer = wait::until_ok("the web server", SERVER_LIMIT, || {
        let answer = http::get(&address, "/zeros")?;
        ensure!(answer.body.len() == SIZE, "{} bytes", answer.body.len());
        Ok(answer)
    })?;
    ensure!(answer.body.iter().all(|byte| *byte == 0), "bytes changed on the way");
    Ok(())
}

/// Flows of several clients at once, which the host spreads over the queues.
fn a_machine_of_two_processors_has_two_queues(f: &mut Fixture) -> Result<()> {
    const SIZE: usize = 2 << 20;
    const CLIENTS: usize = 8;
    f.environment.needs_machine("pods of this handler have no network device of their own")?;
    let mut config = f.pod_config("queues");
    let cpus = cri::LinuxContainerResources { cpu_quota: 200_000, cpu_period: 100_000, ..Default::default() };
    config.linux.get_or_insert_default().resources = Some(cpus);
    let pod = Pod::run(f.cri(), config, "")?;
    let script = format!("mkdir /tmp/w; head -c {SIZE} /dev/zero > /tmp/w/zeros; exec httpd -f -p 80 -h /tmp/w");
    let container = pod.start(&Spec::shell(&f.image("httpd")?, &script))?;
    let counted = container.exec(&["sh", "-c", "ls -d /sys/class/net/eth0/queues/rx-* | wc -l"])?;
    let processors = std::thread::available_parallelism()?.get().min(2);
    let queues = if f.environment.handler == Handler::Microvm { processors } else { 1 };
    ensure!(counted.stdout.trim() == queues.to_string(), "{counted:?}");
    let address = format!("{}:80", pod.address()?);
    wait::until_ok("the web server", SERVER_LIMIT, || http::get(&address, "/zeros"))?;
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| http::get(&address, "/zeros"))).collect();
        clients.into_iter().try_for_each(|client| {
            let answer = client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
            ensure!(answer.body.len() == SIZE, "{} bytes", answer.body.len());
            Ok(())
        })
    })?;
    pod.remove()?;
    f.assert_nothing_left()
}

fn the_resolver_comes_from_the_network_without_a_dns_config(f: &mut Fixture) -> Result<()> {
    let pod = f.pod("resolver")?;
    let outcome = pod.once(&f.shell("cat /etc/resolv.conf")?)?;
    ensure!(outcome.stdout.contains(&format!("nameserver {}", f.network.gateway())), "{outcome:?}");
    Ok(())
}

/// A list with a plugin of ours alone.
fn list(kind: &str) -> Value {
    json!({ "cniVersion": "1.0.0", "name": "broken-net", "plugins": [{ "type": kind }] })
}

const VERSIONS: &str =
    r#"[ "$CNI_COMMAND" = VERSION ] && echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}' && exit 0"#;

/// The message of a sandbox that must fail with this configuration; then the good one is back and works.
fn refused(f: &Fixture, configuration: Option<&Value>) -> Result<String> {
    match configuration {
        Some(list) => f.network.configure(list)?,
        None => f.network.unconfigure()?,
    }
    let result = f.pod("broken");
    f.network.configure(&f.network.bridge_list())?;
    let error = result.err().context("the sandbox runs")?;
    ensure!(f.cri().pods()?.is_empty(), "a sandbox is left: {:?}", f.cri().pods()?);
    f.assert_nothing_left()?;
    Ok(error.message)
}

fn a_plugin_that_fails_is_told_in_its_own_words(f: &mut Fixture) -> Result<()> {
    let script = format!(
        "{VERSIONS}\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\n\
         echo '{{\"cniVersion\":\"1.0.0\",\"code\":11,\"msg\":\"the pool is dry\",\"details\":\"10.9.9.0/30 is used up\"}}'\nexit 1"
    );
    f.network.plugin("dry", &script)?;
    let message = refused(f, Some(&list("dry")))?;
    for word in ["dry", "the pool is dry", "10.9.9.0/30 is used up", "broken-net"] {
        ensure!(message.contains(word), "{word:?} is not in {message:?}");
    }
    f.network.plugin(
        "rude",
        &format!("{VERSIONS}\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\necho segmentation of something >&2\nexit 3"),
    )?;
    let message = refused(f, Some(&list("rude")))?;
    ensure!(message.contains("rude") && message.contains("segmentation of something"), "{message}");
    Ok(())
}

fn a_plugin_that_hangs_is_ended(f: &mut Fixture) -> Result<()> {
    f.network.plugin("slow", &format!("{VERSIONS}\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\nsleep 600 & wait"))?;
    let started = Instant::now();
    let message = refused(f, Some(&list("slow")))?;
    ensure!(started.elapsed() < Duration::from_secs(CNI_TIMEOUT_S + 60), "it took {:?}", started.elapsed());
    ensure!(message.contains("slow") && message.contains(&format!("{CNI_TIMEOUT_S} s")), "{message}");
    Ok(())
}

fn a_plugin_that_is_missing_is_told(f: &mut Fixture) -> Result<()> {
    let message = refused(f, Some(&list("not-installed")));
    // Whatever became of the sandbox, the next cases start without it.
    f.network.plugin("not-installed", "exit 0")?;
    let message = message?;
    ensure!(message.contains("not-installed"), "{message}");
    ensure!(message.contains(&f.network.bin_dirs[1].display().to_string()), "where was it looked for: {message}");
    Ok(())
}

fn network_condition(f: &Fixture) -> Result<cri::RuntimeCondition> {
    let status = f.cri().status(cri::StatusRequest::default())?.status.context("no status")?;
    status.conditions.into_iter().find(|c| c.r#type == "NetworkReady").context("no NetworkReady")
}

fn a_missing_configuration_is_told(f: &mut Fixture) -> Result<()> {
    f.network.unconfigure()?;
    let condition = network_condition(f)?;
    f.network.configure(&f.network.bridge_list())?;
    let directory = f.network.conf_dir.display().to_string();
    ensure!(!condition.status && condition.message.contains(&directory), "{condition:?}");
    ensure!(network_condition(f)?.status, "the configuration is back");
    let message = refused(f, None)?;
    ensure!(message.contains(&directory), "{message}");
    Ok(())
}

fn a_broken_configuration_is_told(f: &mut Fixture) -> Result<()> {
    std::fs::write(f.network.conf_dir.join("00-bad.conflist"), "{ \"name\": \"x\",\n \"plugins\": [ oops ] }")?;
    f.network.unconfigure()?;
    let error = f.pod("broken").err();
    std::fs::remove_file(f.network.conf_dir.join("00-bad.conflist"))?;
    f.network.configure(&f.network.bridge_list())?;
    let message = error.context("the sandbox runs")?.message;
    ensure!(message.contains("00-bad.conflist") && message.contains("line 2"), "{message}");
    Ok(())
}
