//! What several plugins ask for, as one: in the order of their indexes, each sees what those before it changed, and none
//! may set what another one has set. The rules are the reference's (containerd/nri, pkg/adaptation/result.go).

use std::collections::{HashMap, HashSet};

use bulkhead_proto::nri::{self, Field};

use super::check;
use super::error::NriError;
use super::owners::{Owners, marked, unmarked};
use super::resources;

/// The creation of one container, as plugins change it.
#[derive(Debug, Default)]
pub(crate) struct Creation {
    /// The container as the next plugin sees it.
    pub(crate) container: nri::Container,
    /// What was asked for. What is removed stands there with the mark of removal.
    pub(crate) adjust: nri::ContainerAdjustment,
    /// What is asked for other containers.
    pub(crate) updates: Updates,
    /// Who asked.
    pub(crate) owners: Owners,
}

impl Creation {
    pub(super) fn new(container: nri::Container) -> Self {
        Self { container, ..Default::default() }
    }

    /// Adds what a plugin answered.
    pub(super) fn apply(&mut self, plugin: &str, answer: nri::CreateContainerResponse) -> Result<(), NriError> {
        if let Some(asked) = answer.adjust.into_option() {
            check::adjustment(plugin, &asked)?;
            self.adjust(plugin, asked)?;
        }
        if answer.update.iter().any(|update| update.container_id == self.container.id) {
            let field = "update of the container that is being created".to_owned();
            let why = "a new container is changed by an adjustment".to_owned();
            return Err(NriError::Unsupported { plugin: plugin.into(), field, why });
        }
        self.updates.evictions.extend(answer.evict);
        self.updates.apply(&mut self.owners, plugin, answer.update)
    }

    fn adjust(&mut self, plugin: &str, asked: nri::ContainerAdjustment) -> Result<(), NriError> {
        let Self { container, adjust, owners, .. } = self;
        let id = container.id.clone();
        let claims = &mut |claim: Claim<'_>| owners.take(&id, plugin, claim);
        annotations(claims, asked.annotations, &mut container.annotations, &mut adjust.annotations)?;
        let by_destination = |mount: &nri::Mount| mount.destination.clone();
        keyed(claims, Field::Mounts, asked.mounts, by_destination, &mut container.mounts, &mut adjust.mounts)?;
        environment(claims, asked.env, &mut container.env, &mut adjust.env)?;
        arguments(claims, asked.args, &mut container.args, &mut adjust.args)?;
        for limit in asked.rlimits {
            claims(Claim::Set(Field::Rlimits, &limit.type_))?;
            container.rlimits.retain(|other| other.type_ != limit.type_);
            container.rlimits.push(limit.clone());
            adjust.rlimits.push(limit);
        }
        for device in asked.CDI_devices {
            claims(Claim::Set(Field::CdiDevices, &device.name))?;
            adjust.CDI_devices.push(device);
        }
        let Some(linux) = asked.linux.into_option() else { return Ok(()) };
        let (seen, noted) = (container.linux.mut_or_insert_default(), adjust.linux.mut_or_insert_default());
        let by_path = |device: &nri::LinuxDevice| device.path.clone();
        keyed(claims, Field::Devices, linux.devices, by_path, &mut seen.devices, &mut noted.devices)?;
        if let Some(limits) = linux.resources.into_option() {
            let noted = noted.resources.mut_or_insert_default();
            resources::merge(claims, &limits, &mut [seen.resources.mut_or_insert_default(), noted])?;
        }
        if linux.oom_score_adj.is_some() {
            claims(Claim::Set(Field::OomScoreAdj, ""))?;
            (seen.oom_score_adj, noted.oom_score_adj) = (linux.oom_score_adj.clone(), linux.oom_score_adj);
        }
        if linux.seccomp_policy.is_some() {
            claims(Claim::Set(Field::SeccompPolicy, ""))?;
            (seen.seccomp_policy, noted.seccomp_policy) = (linux.seccomp_policy.clone(), linux.seccomp_policy);
        }
        Ok(())
    }
}

/// What a plugin does to a field of the container that is looked at: sets or removes it.
pub(super) enum Claim<'a> {
    Set(Field, &'a str),
    Removed(Field, &'a str),
}

/// Notes a claim, or refuses it.
pub(super) type Claims<'c> = &'c mut dyn FnMut(Claim<'_>) -> Result<(), NriError>;

fn annotations(
    claims: Claims<'_>,
    asked: HashMap<String, String>,
    seen: &mut HashMap<String, String>,
    noted: &mut HashMap<String, String>,
) -> Result<(), NriError> {
    let (removed, set): (Vec<_>, Vec<_>) = asked.into_iter().partition(|(key, _)| unmarked(key).1);
    for (key, _) in removed {
        let name = unmarked(&key).0;
        claims(Claim::Removed(Field::Annotations, name))?;
        seen.remove(name);
        noted.remove(name);
        noted.insert(key, String::new());
    }
    for (key, value) in set {
        claims(Claim::Set(Field::Annotations, &key))?;
        noted.remove(&marked(&key));
        noted.insert(key.clone(), value.clone());
        seen.insert(key, value);
    }
    Ok(())
}

/// Things that a container has by name: what is marked goes, what is new replaces what has its name.
fn keyed<T: Clone>(
    claims: Claims<'_>,
    field: Field,
    asked: Vec<T>,
    key: impl Fn(&T) -> String,
    seen: &mut Vec<T>,
    noted: &mut Vec<T>,
) -> Result<(), NriError> {
    let (removed, set): (Vec<_>, Vec<_>) = asked.into_iter().partition(|one| unmarked(&key(one)).1);
    for one in removed {
        let mark = key(&one);
        let name = unmarked(&mark).0;
        claims(Claim::Removed(field, name))?;
        seen.retain(|other| key(other) != name);
        noted.retain(|other| key(other) != name && key(other) != mark);
        noted.push(one);
    }
    for one in set {
        let name = key(&one);
        claims(Claim::Set(field, &name))?;
        seen.retain(|other| key(other) != name);
        noted.retain(|other| key(other) != marked(&name));
        seen.push(one.clone());
        noted.push(one);
    }
    Ok(())
}

fn environment(
    claims: Claims<'_>,
    asked: Vec<nri::KeyValue>,
    seen: &mut Vec<String>,
    noted: &mut Vec<nri::KeyValue>,
) -> Result<(), NriError> {
    let touched: HashSet<String> = asked.iter().map(|pair| unmarked(&pair.key).0.to_owned()).collect();
    let mut set = Vec::new();
    keyed(claims, Field::Env, asked, |pair| pair.key.clone(), &mut set, noted)?;
    seen.retain(|line| !touched.contains(line.split('=').next().unwrap_or_default()));
    seen.extend(set.iter().map(|pair| format!("{}={}", pair.key, pair.value)));
    Ok(())
}

/// An empty first argument says that whatever others set is replaced.
fn arguments(
    claims: Claims<'_>,
    mut asked: Vec<String>,
    seen: &mut Vec<String>,
    noted: &mut Vec<String>,
) -> Result<(), NriError> {
    if asked.is_empty() {
        return Ok(());
    }
    if asked[0].is_empty() {
        claims(Claim::Removed(Field::Args, ""))?;
        asked.remove(0);
    }
    claims(Claim::Set(Field::Args, ""))?;
    noted.clone_from(&asked);
    *seen = asked;
    Ok(())
}

/// What plugins ask for containers that exist.
#[derive(Debug, Clone, Default)]
pub(crate) struct Updates {
    /// Changed limits, one entry a container.
    pub(crate) limits: Vec<nri::ContainerUpdate>,
    /// Containers that shall end.
    pub(crate) evictions: Vec<nri::ContainerEviction>,
}

impl Updates {
    /// Adds what a plugin asks for. What it says may fail is left out when it conflicts.
    pub(super) fn apply(
        &mut self,
        owners: &mut Owners,
        plugin: &str,
        asked: Vec<nri::ContainerUpdate>,
    ) -> Result<(), NriError> {
        for update in asked {
            if let Err(error) = self.apply_one(owners, plugin, &update) {
                if !update.ignore_failure {
                    return Err(error);
                }
                tracing::info!(plugin, container = update.container_id, %error, "update left out, as the plugin allows");
            }
        }
        Ok(())
    }

    fn apply_one(&mut self, owners: &mut Owners, plugin: &str, asked: &nri::ContainerUpdate) -> Result<(), NriError> {
        let id = &asked.container_id;
        let Some(limits) = asked.linux.as_ref().and_then(|linux| linux.resources.as_ref()) else { return Ok(()) };
        check::limits(plugin, limits)?;
        // On copies: what fails changes nothing.
        let mut claimed = owners.clone();
        let at = self.limits.iter().position(|update| update.container_id == *id);
        let mut update = match at {
            Some(at) => self.limits[at].clone(),
            None => nri::ContainerUpdate {
                container_id: id.clone(),
                ignore_failure: asked.ignore_failure,
                ..Default::default()
            },
        };
        update.ignore_failure &= asked.ignore_failure;
        let target = update.linux.mut_or_insert_default().resources.mut_or_insert_default();
        resources::merge(&mut |claim| claimed.take(id, plugin, claim), limits, &mut [target])?;
        *owners = claimed;
        match at {
            Some(at) => self.limits[at] = update,
            None => self.limits.push(update),
        }
        Ok(())
    }

    /// Takes out what is asked for one container.
    pub(super) fn take(&mut self, container: &str) -> Option<nri::LinuxResources> {
        let at = self.limits.iter().position(|update| update.container_id == container)?;
        self.limits.remove(at).linux.into_option()?.resources.into_option()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::MessageField;

    fn creation() -> Creation {
        Creation::new(nri::Container {
            id: "c".into(),
            env: vec!["PATH=/bin".into(), "A=1".into()],
            args: vec!["sleep".into()],
            mounts: vec![nri::Mount { destination: "/data".into(), source: "/old".into(), ..Default::default() }],
            ..Default::default()
        })
    }

    fn answer(adjust: nri::ContainerAdjustment) -> nri::CreateContainerResponse {
        nri::CreateContainerResponse { adjust: MessageField::some(adjust), ..Default::default() }
    }

    fn env(pairs: &[(&str, &str)]) -> nri::CreateContainerResponse {
        let pair = |(key, value): &(&str, &str)| nri::KeyValue {
            key: (*key).into(),
            value: (*value).into(),
            ..Default::default()
        };
        answer(nri::ContainerAdjustment { env: pairs.iter().map(pair).collect(), ..Default::default() })
    }

    fn mounts(pairs: &[(&str, &str)]) -> nri::CreateContainerResponse {
        let mount = |(destination, source): &(&str, &str)| nri::Mount {
            destination: (*destination).into(),
            source: (*source).into(),
            ..Default::default()
        };
        answer(nri::ContainerAdjustment { mounts: pairs.iter().map(mount).collect(), ..Default::default() })
    }

    fn keys(creation: &Creation) -> Vec<&str> {
        creation.adjust.env.iter().map(|pair| pair.key.as_str()).collect()
    }

    #[test]
    fn variables_are_added_replaced_and_removed() {
        let mut creation = creation();
        creation.apply("10-x", env(&[("A", "2"), ("B", "3")])).unwrap();
        assert_eq!(creation.container.env, ["PATH=/bin", "A=2", "B=3"]);
        let error = creation.apply("20-y", env(&[("A", "4")])).unwrap_err();
        let NriError::Conflict { plugin, other, .. } = error else { panic!("{error}") };
        assert_eq!((plugin.as_str(), other.as_str()), ("20-y", "10-x"));
        creation.apply("20-y", env(&[("-B", ""), ("B", "5"), ("-PATH", "")])).unwrap();
        assert_eq!(creation.container.env, ["A=2", "B=5"]);
        assert_eq!(keys(&creation), ["A", "-PATH", "B"]);
    }

    #[test]
    fn mounts_are_told_apart_by_their_destination() {
        let mut creation = creation();
        creation.apply("10-x", mounts(&[("/new", "/a"), ("-/data", "")])).unwrap();
        let sources: Vec<_> = creation.container.mounts.iter().map(|mount| mount.source.as_str()).collect();
        assert_eq!(sources, ["/a"]);
        let text = creation.apply("20-y", mounts(&[("/new", "/b")])).unwrap_err().to_string();
        assert!(text.contains("Mounts /new"), "{text}");
    }

    #[test]
    fn arguments_have_one_owner_unless_they_are_overridden() {
        let args = |words: &[&str]| {
            let args = words.iter().map(|word| (*word).to_owned()).collect();
            answer(nri::ContainerAdjustment { args, ..Default::default() })
        };
        let mut creation = creation();
        creation.apply("10-x", args(&["a"])).unwrap();
        assert!(creation.apply("20-y", args(&["b"])).is_err());
        creation.apply("30-z", args(&["", "c"])).unwrap();
        assert_eq!((creation.container.args, creation.adjust.args), (vec!["c".to_owned()], vec!["c".to_owned()]));
    }

    fn update(id: &str, shares: u64, ignore_failure: bool) -> nri::ContainerUpdate {
        let mut update = nri::ContainerUpdate { container_id: id.into(), ignore_failure, ..Default::default() };
        update.linux.mut_or_insert_default().resources.mut_or_insert_default().cpu.mut_or_insert_default().shares =
            MessageField::some(nri::OptionalUInt64 { value: shares, ..Default::default() });
        update
    }

    #[test]
    fn updates_of_others_merge_and_conflicts_are_left_out_where_the_plugin_says_so() {
        let mut creation = creation();
        let of = |update| nri::CreateContainerResponse { update, ..Default::default() };
        creation.apply("10-x", of(vec![update("d", 2, false), update("e", 3, false)])).unwrap();
        creation.apply("20-y", of(vec![update("d", 9, true)])).unwrap();
        assert!(creation.apply("20-y", of(vec![update("d", 9, false)])).is_err());
        assert!(creation.apply("20-y", of(vec![update("c", 9, true)])).is_err(), "the new one itself");
        assert_eq!(creation.updates.limits.len(), 2);
        assert_eq!(creation.updates.take("d").unwrap().cpu.shares.value, 2);
        assert!(creation.updates.take("d").is_none());
    }
}
