//! Seccomp profiles, seen from inside: what is refused, and how.

use std::fs;

use anyhow::{Context, Result, ensure};
use bulkhead_proto::cri;
use bulkhead_proto::cri::security_profile::ProfileType;
use bulkhead_tests::environment::Environment;
use bulkhead_tests::fixture::Fixture;
use bulkhead_tests::pod::{Outcome, Pod, Spec};
use bulkhead_tests::suite::SuiteFixture;

/// 128 + SIGSYS
const KILLED: i32 = 159;

/// One pod for all cases.
struct Suite {
    f: Fixture,
    pod: Pod,
}

bulkhead_tests::suite!(
    Suite;
    without_a_profile_nothing_is_filtered,
    the_default_profile_refuses_what_is_dangerous,
    the_default_profile_grows_with_capabilities,
    privileged_containers_are_not_filtered,
    every_action_is_taken,
    arguments_are_compared,
    rules_depend_on_capabilities_and_kernel,
    a_filter_needs_no_privileges_of_the_container,
    a_filter_may_forbid_what_its_set_up_takes,
    commands_executed_later_are_filtered_too,
    profiles_that_cannot_be_applied_are_refused,
);

impl SuiteFixture for Suite {
    fn start(environment: &Environment) -> Result<Self> {
        let mut f = Fixture::start(environment)?;
        let pod = f.pod("seccomp")?;
        f.keep(&pod);
        Ok(Self { f, pod })
    }

    fn after_case(&mut self, failed: bool) -> Result<()> {
        let containers = self.f.cri().containers()?;
        let result = self.f.after_case(failed);
        for container in containers {
            self.f.cri().remove_container(cri::RemoveContainerRequest { container_id: container.id })?;
        }
        result
    }

    fn finish(self) -> Result<()> {
        self.f.finish()
    }
}

impl Suite {
    /// Runs a script under a profile.
    fn under(&self, profile: cri::SecurityProfile, script: &str) -> Result<Outcome> {
        self.pod.once(&self.f.shell(script)?.security(|c| c.seccomp = Some(profile)))
    }

    /// A profile in a file of the host.
    fn profile(&self, name: &str, text: &str) -> Result<cri::SecurityProfile> {
        let path = self.f.path(name);
        fs::write(&path, text)?;
        Ok(local(&path.to_string_lossy()))
    }

    /// A profile that allows everything but what `rules` say.
    fn but(&self, name: &str, rules: &str) -> Result<cri::SecurityProfile> {
        self.profile(name, &format!(r#"{{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rules}] }}"#))
    }
}

fn local(path: &str) -> cri::SecurityProfile {
    cri::SecurityProfile { profile_type: ProfileType::Localhost as i32, localhost_ref: path.to_owned() }
}

fn of_type(kind: ProfileType) -> cri::SecurityProfile {
    cri::SecurityProfile { profile_type: kind as i32, ..Default::default() }
}

/// Prints the kernel's word on the shell's own filter: 0 none, 2 a program.
const MODE: &str = "grep ^Seccomp: /proc/self/status | cut -f2";

fn without_a_profile_nothing_is_filtered(s: &mut Suite) -> Result<()> {
    let unconfined = s.under(of_type(ProfileType::Unconfined), MODE)?;
    let unset = s.pod.once(&s.f.shell(MODE)?)?;
    ensure!(unconfined.stdout == "0\n" && unset.stdout == "0\n", "{unconfined:?} {unset:?}");
    Ok(())
}

fn the_default_profile_refuses_what_is_dangerous(s: &mut Suite) -> Result<()> {
    let script = format!("{MODE}; unshare -U true; echo $?");
    let seen = s.under(of_type(ProfileType::RuntimeDefault), &script)?;
    ensure!(seen.stdout == "2\n1\n" && seen.stderr.contains("not permitted"), "{seen:?}");
    let free = s.under(of_type(ProfileType::Unconfined), "unshare -U true")?;
    ensure!(free.code == 0, "without a profile: {free:?}");
    Ok(())
}

fn the_default_profile_grows_with_capabilities(s: &mut Suite) -> Result<()> {
    let spec = s.f.shell("mount -t tmpfs none /tmp && umount /tmp && unshare -U true && echo done")?;
    let add = cri::Capability { add_capabilities: vec!["SYS_ADMIN".into()], ..Default::default() };
    let seen = s.pod.once(&spec.security(|c| {
        c.seccomp = Some(of_type(ProfileType::RuntimeDefault));
        c.capabilities = Some(add);
    }))?;
    ensure!(seen.stdout == "done\n", "{seen:?}");
    Ok(())
}

fn privileged_containers_are_not_filtered(s: &mut Suite) -> Result<()> {
    let spec = s.f.shell(MODE)?.security(|c| {
        c.privileged = true;
        c.seccomp = Some(of_type(ProfileType::RuntimeDefault));
    });
    let seen = s.pod.once(&spec)?;
    ensure!(seen.stdout == "0\n", "{seen:?}");
    Ok(())
}

fn every_action_is_taken(s: &mut Suite) -> Result<()> {
    let rule = |action: &str, more: &str| format!(r#"{{ "names": ["mkdir", "mkdirat"], "action": "{action}"{more} }}"#);
    for (action, more, code, says) in [
        ("SCMP_ACT_ERRNO", "", 1, "not permitted"),
        ("SCMP_ACT_ERRNO", r#", "errnoRet": 28"#, 1, "No space left"),
        // Nobody traces it, which the kernel answers as if there were no such call.
        ("SCMP_ACT_TRACE", "", 1, "not implemented"),
        ("SCMP_ACT_KILL_PROCESS", "", KILLED, ""),
        ("SCMP_ACT_KILL_THREAD", "", KILLED, ""),
        ("SCMP_ACT_KILL", "", KILLED, ""),
        ("SCMP_ACT_TRAP", "", KILLED, ""),
        ("SCMP_ACT_LOG", "", 0, ""),
        ("SCMP_ACT_ALLOW", "", 0, ""),
    ] {
        let profile = s.but("action.json", &rule(action, more))?;
        let seen = s.under(profile, "exec mkdir /made")?;
        ensure!(seen.code == code && seen.stderr.contains(says), "{action}{more}: {seen:?}");
    }
    Ok(())
}

fn arguments_are_compared(s: &mut Suite) -> Result<()> {
    // chmod(path, mode) and fchmodat(directory, path, mode): no set-user-ID bit.
    let rule = |name: &str, index: u32, op: &str| {
        format!(
            r#"{{ "names": ["{name}"], "action": "SCMP_ACT_ERRNO", "args": [
                {{ "index": {index}, {op} }} ] }}"#
        )
    };
    for (op, plain, set) in [
        (r#""value": 2048, "valueTwo": 2048, "op": "SCMP_CMP_MASKED_EQ""#, 0, 1),
        (r#""value": 2048, "op": "SCMP_CMP_GE""#, 0, 1),
        (r#""value": 493, "op": "SCMP_CMP_GT""#, 0, 1),
        (r#""value": 494, "op": "SCMP_CMP_LT""#, 1, 0),
        (r#""value": 493, "op": "SCMP_CMP_LE""#, 1, 0),
        (r#""value": 493, "op": "SCMP_CMP_EQ""#, 1, 0),
        (r#""value": 493, "op": "SCMP_CMP_NE""#, 0, 1),
        // The upper half counts.
        (r#""value": 4294967789, "op": "SCMP_CMP_EQ""#, 0, 0),
    ] {
        let rules = format!("{}, {}", rule("chmod", 1, op), rule("fchmodat", 2, op));
        let profile = s.but("arguments.json", &rules)?;
        let seen = s.under(profile, "touch /f; chmod 0755 /f; echo $?; chmod 04755 /f; echo $?")?;
        ensure!(seen.stdout == format!("{plain}\n{set}\n"), "{op}: {seen:?}");
    }
    Ok(())
}

fn rules_depend_on_capabilities_and_kernel(s: &mut Suite) -> Result<()> {
    let rule = |when: &str| format!(r#"{{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", {when} }}"#);
    for (when, code) in [
        (r#""includes": { "caps": ["CAP_CHOWN"] }"#, 1),
        (r#""includes": { "caps": ["CAP_SYS_ADMIN"] }"#, 0),
        (r#""excludes": { "caps": ["CAP_CHOWN"] }"#, 0),
        (r#""includes": { "minKernel": "5.4" }"#, 1),
        (r#""includes": { "minKernel": "99.0" }"#, 0),
        (r#""includes": { "arches": ["arm64"] }"#, 0),
    ] {
        let seen = s.under(s.but("when.json", &rule(when))?, "mkdir /made")?;
        ensure!(seen.code == code, "{when}: {seen:?}");
    }
    Ok(())
}

fn a_filter_needs_no_privileges_of_the_container(s: &mut Suite) -> Result<()> {
    for no_new_privs in [false, true] {
        let script = "grep -E '^(Seccomp|NoNewPrivs|CapPrm|CapEff|CapBnd):' /proc/self/status | cut -f2 | tr '\\n' ' '";
        let spec = s.f.shell(script)?.security(|c| {
            c.seccomp = Some(of_type(ProfileType::RuntimeDefault));
            c.run_as_user = Some(cri::Int64Value { value: 1000 });
            c.no_new_privs = no_new_privs;
            c.capabilities = Some(cri::Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
        });
        let seen = s.pod.once(&spec)?;
        let none = "0000000000000000";
        let wanted = format!("{none} {none} {none} {} 2 ", u8::from(no_new_privs));
        ensure!(seen.stdout == wanted, "{:?} instead of {wanted:?}", seen.stdout);
    }
    Ok(())
}

fn a_filter_may_forbid_what_its_set_up_takes(s: &mut Suite) -> Result<()> {
    let names = r#""setgroups", "setresuid", "setresgid", "capset", "close_range", "seccomp""#;
    let profile = s.but("set-up.json", &format!(r#"{{ "names": [{names}], "action": "SCMP_ACT_KILL_PROCESS" }}"#))?;
    let spec = s.f.shell("id -u")?.security(|c| {
        c.seccomp = Some(profile);
        c.run_as_user = Some(cri::Int64Value { value: 1000 });
    });
    let seen = s.pod.once(&spec)?;
    ensure!(seen.stdout == "1000\n", "{seen:?}");
    Ok(())
}

fn commands_executed_later_are_filtered_too(s: &mut Suite) -> Result<()> {
    let profile =
        s.but("exec.json", r#"{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 }"#)?;
    let container = s.pod.start(&s.f.shell("sleep 1000")?.security(|c| c.seccomp = Some(profile)))?;
    // What the file says now counts for containers made from now on.
    s.but("exec.json", "")?;
    let seen = container.exec(&["sh", "-c", &format!("{MODE}; mkdir /made")])?;
    ensure!(seen.stdout == "2\n" && seen.stderr.contains("No space left"), "{seen:?}");
    Ok(())
}

fn profiles_that_cannot_be_applied_are_refused(s: &mut Suite) -> Result<()> {
    let many: Vec<String> = (0..2000)
        .map(|value| {
            format!(
                r#"{{ "names": ["read"], "action": "SCMP_ACT_LOG", "args": [ {{ "index": 2, "value": {value}, "op": "SCMP_CMP_EQ" }} ] }}"#
            )
        })
        .collect();
    let notify = s.profile("notify.json", r#"{ "defaultAction": "SCMP_ACT_NOTIFY" }"#)?;
    for (profile, why) in [
        (local("/no/such/profile.json"), "No such file"),
        (local("profiles/one.json"), "not an absolute path"),
        (local("/"), "no regular file"),
        (s.profile("garbage.json", "{ what }")?, "no seccomp profile"),
        (notify, "SCMP_ACT_NOTIFY"),
        (s.but("many.json", &many.join(","))?, "4096"),
    ] {
        let spec = Spec::new(&s.f.image("busybox")?, &["true"]).security(|c| c.seccomp = Some(profile.clone()));
        let error = s.pod.create(&spec).err().with_context(|| format!("{profile:?} was taken"))?;
        ensure!(error.message.contains(why), "{profile:?}: {error}");
    }
    Ok(())
}
