//! Limits between the CRI and NRI. In the CRI 0 and the empty string are unset; in NRI they are absent.

use bulkhead_proto::cri;
use bulkhead_proto::nri::{self, Field};
use protobuf::MessageField;

use super::error::NriError;
use super::merge::{Claim, Claims};

/// The file of a limit that the CRI has no field for (cgroup v2, pids controller).
const PIDS: &str = "pids.max";
/// As `PIDS`, of the memory controller: what NRI calls reservation.
const RESERVATION: &str = "memory.low";

macro_rules! optional {
    ($value:expr, $kind:ident) => {
        match $value {
            Ok(0) | Err(_) => MessageField::none(),
            Ok(value) => MessageField::some(nri::$kind { value, ..Default::default() }),
        }
    };
}

/// NRI's form of the CRI's limits.
pub(crate) fn to_nri(limits: &cri::LinuxContainerResources) -> nri::LinuxResources {
    let mut unified = limits.unified.clone();
    let reservation = unified.get(RESERVATION).and_then(|text| text.parse().ok());
    let pids = unified.remove(PIDS).map(|text| text.parse::<i64>().unwrap_or(-1));
    let memory = nri::LinuxMemory {
        limit: optional!(Ok::<i64, ()>(limits.memory_limit_in_bytes), OptionalInt64),
        reservation: reservation.map(|value| nri::OptionalInt64 { value, ..Default::default() }).into(),
        swap: optional!(Ok::<i64, ()>(limits.memory_swap_limit_in_bytes), OptionalInt64),
        ..Default::default()
    };
    let cpu = nri::LinuxCPU {
        shares: optional!(u64::try_from(limits.cpu_shares), OptionalUInt64),
        quota: optional!(Ok::<i64, ()>(limits.cpu_quota), OptionalInt64),
        period: optional!(u64::try_from(limits.cpu_period), OptionalUInt64),
        cpus: limits.cpuset_cpus.clone(),
        mems: limits.cpuset_mems.clone(),
        ..Default::default()
    };
    let pages = limits.hugepage_limits.iter().map(|pages| nri::HugepageLimit {
        page_size: pages.page_size.clone(),
        limit: pages.limit,
        ..Default::default()
    });
    nri::LinuxResources {
        memory: MessageField::some(memory),
        cpu: MessageField::some(cpu),
        hugepage_limits: pages.collect(),
        unified,
        pids: pids.map(|limit| nri::LinuxPids { limit, ..Default::default() }).into(),
        ..Default::default()
    }
}

/// Puts what is set in `asked` into every target, in the name of the plugin that claims.
pub(super) fn merge(
    claims: Claims<'_>,
    asked: &nri::LinuxResources,
    targets: &mut [&mut nri::LinuxResources],
) -> Result<(), NriError> {
    macro_rules! optional_fields {
        ($part:ident: $($name:ident => $field:ident),*) => {$(
            let value = asked.$part.as_ref().map(|part| part.$name.clone()).unwrap_or_default();
            if value.is_some() {
                claims(Claim::Set(Field::$field, ""))?;
                for target in targets.iter_mut() {
                    target.$part.mut_or_insert_default().$name = value.clone();
                }
            }
        )*};
    }
    macro_rules! text_fields {
        ($($name:ident => $field:ident),*) => {$(
            let value = asked.cpu.as_ref().map(|cpu| cpu.$name.clone()).unwrap_or_default();
            if !value.is_empty() {
                claims(Claim::Set(Field::$field, ""))?;
                for target in targets.iter_mut() {
                    target.cpu.mut_or_insert_default().$name.clone_from(&value);
                }
            }
        )*};
    }
    optional_fields!(memory: limit => MemLimit, reservation => MemReservation, swap => MemSwapLimit);
    optional_fields!(cpu: shares => CPUShares, quota => CPUQuota, period => CPUPeriod);
    text_fields!(cpus => CPUSetCPUs, mems => CPUSetMems);
    for pages in &asked.hugepage_limits {
        claims(Claim::Set(Field::HugepageLimits, &pages.page_size))?;
        for target in targets.iter_mut() {
            target.hugepage_limits.retain(|other| other.page_size != pages.page_size);
            target.hugepage_limits.push(pages.clone());
        }
    }
    for (file, content) in &asked.unified {
        claims(Claim::Set(Field::CgroupsUnified, file))?;
        for target in targets.iter_mut() {
            target.unified.insert(file.clone(), content.clone());
        }
    }
    if asked.pids.is_some() {
        claims(Claim::Set(Field::PidsLimit, ""))?;
        for target in targets.iter_mut() {
            target.pids = asked.pids.clone();
        }
    }
    Ok(())
}

/// Puts what is set in `from` into `into`, whoever asked for it.
pub(super) fn put(from: &nri::LinuxResources, into: &mut nri::LinuxResources) {
    // Nothing conflicts, because nobody's claims are kept.
    let _ = merge(&mut |_| Ok(()), from, &mut [into]);
}

/// The CRI's form of limits that plugins ask for; 0 and empty are what they say nothing of.
pub(crate) fn to_cri(limits: &nri::LinuxResources) -> cri::LinuxContainerResources {
    let memory = limits.memory.clone().unwrap_or_default();
    let cpu = limits.cpu.clone().unwrap_or_default();
    let mut unified = limits.unified.clone();
    if let Some(reservation) = memory.reservation.as_ref() {
        let content = if reservation.value < 0 { "max".to_owned() } else { reservation.value.to_string() };
        unified.entry(RESERVATION.into()).or_insert(content);
    }
    if let Some(pids) = limits.pids.as_ref() {
        let content = if pids.limit <= 0 { "max".to_owned() } else { pids.limit.to_string() };
        unified.entry(PIDS.into()).or_insert(content);
    }
    let number = |value: Option<u64>| value.map_or(0, |value| i64::try_from(value).unwrap_or(i64::MAX));
    cri::LinuxContainerResources {
        cpu_shares: number(cpu.shares.as_ref().map(|shares| shares.value)),
        cpu_quota: cpu.quota.as_ref().map_or(0, |quota| quota.value),
        cpu_period: number(cpu.period.as_ref().map(|period| period.value)),
        cpuset_cpus: cpu.cpus,
        cpuset_mems: cpu.mems,
        memory_limit_in_bytes: memory.limit.as_ref().map_or(0, |limit| limit.value),
        memory_swap_limit_in_bytes: memory.swap.as_ref().map_or(0, |swap| swap.value),
        hugepage_limits: limits
            .hugepage_limits
            .iter()
            .map(|pages| cri::HugepageLimit { page_size: pages.page_size.clone(), limit: pages.limit })
            .collect(),
        unified,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_survive_the_way_there_and_back() {
        let limits = cri::LinuxContainerResources {
            cpu_shares: 512,
            cpu_quota: -1,
            cpu_period: 100_000,
            cpuset_cpus: "0-1".into(),
            memory_limit_in_bytes: 1 << 30,
            hugepage_limits: vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }],
            unified: [("memory.high".to_owned(), "1000".to_owned()), (PIDS.to_owned(), "max".to_owned())].into(),
            ..Default::default()
        };
        let there = to_nri(&limits);
        assert!(there.memory.swap.is_none() && there.cpu.quota.value == -1 && there.pids.limit == -1);
        assert!(!there.unified.contains_key(PIDS));
        assert_eq!(to_cri(&there), limits);
    }

    #[test]
    fn what_cri_has_no_field_for_is_a_file_of_the_cgroup() {
        let pids = MessageField::some(nri::LinuxPids { limit: 7, ..Default::default() });
        let mut limits = nri::LinuxResources { pids, ..Default::default() };
        limits.memory.mut_or_insert_default().reservation =
            MessageField::some(nri::OptionalInt64 { value: 4096, ..Default::default() });
        let unified = to_cri(&limits).unified;
        assert_eq!((unified[PIDS].as_str(), unified[RESERVATION].as_str()), ("7", "4096"));
    }
}
