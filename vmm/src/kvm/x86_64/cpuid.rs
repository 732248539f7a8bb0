//! What the guest's processors say they are: the host's, less what ties a guest to one host or serves no pod.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

const BASIC: u32 = 0x0;
const FEATURES: u32 = 0x1;
const CACHES: u32 = 0x4;
const MONITOR: u32 = 0x5;
const STRUCTURED: u32 = 0x7;
const PERFORMANCE: u32 = 0xa;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const RESOURCE_MONITORING: u32 = 0xf;
const RESOURCE_ALLOCATION: u32 = 0x10;
const SGX: u32 = 0x12;
const TRACE: u32 = 0x14;
const KVM_FEATURES: u32 = 0x4000_0001;
const EXTENDED_FEATURES: u32 = 0x8000_0001;
const EXTENDED_SIZES: u32 = 0x8000_0008;
const SVM: u32 = 0x8000_000a;
const EXTENDED_CACHES: u32 = 0x8000_001d;
const EXTENDED_TOPOLOGY: u32 = 0x8000_001e;
const ENCRYPTION: u32 = 0x8000_001f;
const EXTENDED_PERFORMANCE: u32 = 0x8000_0022;

const ECX_MONITOR: u32 = 1 << 3;
const ECX_VMX: u32 = 1 << 5;
const ECX_PDCM: u32 = 1 << 15;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
const EXT_ECX_SVM: u32 = 1 << 2;
/// Performance counters of the core, the north bridge and the last cache.
const EXT_ECX_PERFORMANCE: u32 = 1 << 23 | 1 << 24 | 1 << 28;
/// Hardware lock elision, SGX, restricted transactions, resource monitoring and allocation, processor trace.
const EBX_HIDDEN: u32 = 1 << 4 | 1 << 2 | 1 << 11 | 1 << 12 | 1 << 15 | 1 << 25;
/// UMWAIT, which halts a processor without leaving it to others.
const ECX_WAITPKG: u32 = 1 << 5;
/// AMX: eight KiB of registers in every context.
const EDX_AMX: u32 = 1 << 22 | 1 << 24 | 1 << 25;
/// Encrypted guests share pages by it, and migrate.
const KVM_HIDDEN: u32 = 1 << 16 | 1 << 17;

const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The leaves of processor `id` of `count`, each a core with one thread in one socket, from what KVM supports.
#[must_use]
pub fn processor(supported: &[kvm_cpuid_entry2], deadline_timer: bool, id: u8, count: u8) -> Vec<kvm_cpuid_entry2> {
    let count = count.max(1);
    let mut leaves: Vec<_> = supported.iter().filter(|leaf| !is_dropped(leaf)).copied().collect();
    let max_basic = leaves.iter().find(|leaf| leaf.function == BASIC).map_or(0, |leaf| leaf.eax);
    for leaf in &mut leaves {
        shape(leaf, deadline_timer, id, count);
    }
    leaves.retain(|leaf| !matches!(leaf.function, TOPOLOGY | TOPOLOGY_V2));
    for function in [TOPOLOGY, TOPOLOGY_V2].into_iter().filter(|function| *function <= max_basic) {
        leaves.extend(topology(function, id, count));
    }
    leaves
}

/// As KVM takes them; `None` when there are more than it takes.
#[must_use]
pub fn table(leaves: &[kvm_cpuid_entry2]) -> Option<CpuId> {
    CpuId::from_entries(leaves).ok()
}

fn is_dropped(leaf: &kvm_cpuid_entry2) -> bool {
    matches!(
        leaf.function,
        MONITOR
            | PERFORMANCE
            | RESOURCE_MONITORING
            | RESOURCE_ALLOCATION
            | SGX
            | TRACE
            | SVM
            | ENCRYPTION
            | EXTENDED_PERFORMANCE
    )
}

fn shape(leaf: &mut kvm_cpuid_entry2, deadline_timer: bool, id: u8, count: u8) {
    let (apic_id, siblings) = (u32::from(id), u32::from(count));
    match leaf.function {
        FEATURES => {
            leaf.ebx = leaf.ebx & 0xffff | siblings << 16 | apic_id << 24;
            leaf.ecx &= !(ECX_MONITOR | ECX_VMX | ECX_PDCM);
            leaf.ecx |= ECX_HYPERVISOR | if deadline_timer { ECX_TSC_DEADLINE } else { 0 };
            leaf.edx = if count > 1 { leaf.edx | EDX_HTT } else { leaf.edx & !EDX_HTT };
        }
        // Cores in the socket, and processors that share the cache: the last level belongs to all.
        CACHES if leaf.eax & 0x1f != 0 => {
            leaf.eax = leaf.eax & 0x3fff | sharing(leaf.eax, siblings) | (siblings - 1).min(0x3f) << 26;
        }
        EXTENDED_CACHES if leaf.eax & 0x1f != 0 => leaf.eax = leaf.eax & 0x3fff | sharing(leaf.eax, siblings),
        STRUCTURED if leaf.index == 0 => {
            leaf.ebx &= !EBX_HIDDEN;
            leaf.ecx &= !ECX_WAITPKG;
            leaf.edx &= !EDX_AMX;
        }
        KVM_FEATURES => leaf.eax &= !KVM_HIDDEN,
        EXTENDED_FEATURES => leaf.ecx &= !(EXT_ECX_SVM | EXT_ECX_PERFORMANCE),
        EXTENDED_SIZES => leaf.ecx = (siblings - 1) | id_bits(count) << 12,
        EXTENDED_TOPOLOGY => {
            leaf.eax = apic_id;
            // One thread in each core; one node.
            leaf.ebx = apic_id & 0xff;
            leaf.ecx = 0;
        }
        _ => {}
    }
}

/// The field of a cache's EAX that says how many processors share it.
fn sharing(cache: u32, siblings: u32) -> u32 {
    if cache >> 5 & 7 >= 3 { (siblings - 1) << 14 } else { 0 }
}

/// Bits of an APIC id that number the cores.
fn id_bits(count: u8) -> u32 {
    u32::from(count).next_power_of_two().trailing_zeros()
}

fn topology(function: u32, id: u8, count: u8) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, shift: u32, processors: u32, kind: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: index | kind << 8,
        edx: u32::from(id),
        ..Default::default()
    };
    [level(0, 0, 1, LEVEL_THREAD), level(1, id_bits(count), u32::from(count), LEVEL_CORE), level(2, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, ebx: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, ebx, ecx, edx, ..Default::default() }
    }

    fn find(leaves: &[kvm_cpuid_entry2], function: u32, index: u32) -> &kvm_cpuid_entry2 {
        leaves.iter().find(|leaf| leaf.function == function && leaf.index == index).unwrap()
    }

    #[test]
    fn processors_differ_in_their_numbers_only() {
        let mut basic = leaf(BASIC, 0, 0, 0);
        basic.eax = 0x16;
        let supported = [
            basic,
            leaf(FEATURES, 0x1234, ECX_VMX | 1, 0),
            leaf(TOPOLOGY, 9, 9, 9),
            leaf(EXTENDED_FEATURES, 0, 0x3f, 0),
        ];
        let second = processor(&supported, true, 2, 3);
        let features = find(&second, FEATURES, 0);
        assert_eq!(features.ebx, 2 << 24 | 3 << 16 | 0x1234);
        assert_eq!(features.ecx, 1 | ECX_TSC_DEADLINE | ECX_HYPERVISOR);
        assert_eq!(features.edx, EDX_HTT);
        let (threads, cores) = (find(&second, TOPOLOGY, 0), find(&second, TOPOLOGY, 1));
        assert_eq!((threads.eax, threads.ebx, threads.ecx, threads.edx), (0, 1, 0x100, 2));
        assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 3, 0x201, 2));
        assert!(!second.iter().any(|leaf| leaf.function == TOPOLOGY_V2));
        assert_eq!(find(&second, EXTENDED_FEATURES, 0).ecx & EXT_ECX_SVM, 0);
        assert_eq!(find(&processor(&supported, false, 0, 1), FEATURES, 0).edx, 0);
    }

    #[test]
    fn what_ties_a_guest_to_its_host_is_hidden() {
        let supported = [leaf(PERFORMANCE, 1, 1, 1), leaf(SVM, 1, 1, 1), leaf(STRUCTURED, !0, !0, !0)];
        let leaves = processor(&supported, true, 0, 1);
        assert_eq!(leaves.len(), 1);
        assert_eq!(leaves[0].ebx & (1 << 11), 0, "transactions");
        assert_ne!(leaves[0].ebx & (1 << 5), 0, "AVX2 stays");
    }
}
