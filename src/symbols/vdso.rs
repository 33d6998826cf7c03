//! Names in the kernel's vDSO (vdso(7)).
//!
//! Its image is gone with the program. The kernel gives every program the same one, so ours will do if the kernel that
//! runs now is the one that ran then.

use std::fs::File;
use std::os::unix::fs::FileExt;

use object::Object;

use super::Found;
use super::SymbolSource;
use super::SymbolState;
use super::names;
use super::names::Elf;
use crate::event::Module;
use crate::units::Address;
use crate::units::hex;

/// Largest image; it has two to five pages.
const LARGEST_VDSO: u64 = 1 << 20;

/// The functions at these offsets of the vDSO's image.
pub(super) fn look_up(module: &Module, places: &[Address]) -> Found {
    let Some(image) = own_image() else {
        return Found::nothing(places.len(), "this kernel gives programs no vDSO");
    };
    let Ok(elf) = Elf::parse(image.as_slice()) else {
        return Found::nothing(places.len(), "the vDSO cannot be read");
    };
    let build_id = elf.build_id().ok().flatten().map(hex);
    if build_id.is_none() || build_id != module.build_id {
        return Found::nothing(
            places.len(),
            "it is part of another kernel than the one that runs here and now",
        );
    }
    let addresses: Vec<_> = places
        .iter()
        .map(|place| names::address_of(&elf, place.0))
        .collect();
    Found {
        functions: names::names(&elf, &addresses)
            .into_iter()
            .map(|name| name.map(names::only_a_name).into_iter().collect())
            .collect(),
        state: SymbolState {
            source: SymbolSource::Names,
            reason: None,
        },
    }
}

/// The vDSO of breaktrace itself.
fn own_image() -> Option<Vec<u8>> {
    let mapping = crate::mapping::read(std::process::id())
        .ok()?
        .into_iter()
        .find(|mapping| mapping.name.as_deref() == Some("[vdso]"))?;
    let mut image = vec![0; usize::try_from(mapping.bytes().min(LARGEST_VDSO)).ok()?];
    File::open("/proc/self/mem")
        .ok()?
        .read_exact_at(&mut image, mapping.start.0)
        .ok()?;
    Some(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ModuleId;
    use crate::event::ModuleKind;
    use object::ObjectSymbol;

    fn module(build_id: Option<String>) -> Module {
        Module {
            id: ModuleId(1),
            kind: ModuleKind::Vdso,
            path: "[vdso]".into(),
            build_id,
            file: None,
        }
    }

    #[test]
    fn functions_of_the_running_kernels_vdso_have_names_and_those_of_another_kernel_have_none() {
        let Some(image) = own_image() else {
            return;
        };
        let elf = Elf::parse(image.as_slice()).unwrap();
        let build_id = elf.build_id().unwrap().map(hex);
        let symbol = elf
            .dynamic_symbols()
            .find(|symbol| symbol.name() == Ok("__vdso_clock_gettime"))
            .unwrap();
        // The image lies in memory as it would lie in a file.
        let place = [Address(symbol.address() + 1)];
        let found = look_up(&module(build_id), &place);
        assert!(
            found.functions[0][0].name.contains("clock_gettime"),
            "{found:?}"
        );
        let other = look_up(&module(Some("00".repeat(20))), &place);
        assert!(other.functions[0].is_empty());
        assert!(other.state.reason.unwrap().contains("another kernel"));
    }
}
