//! Views of the structures that both halves change at the same time: field by field the same layout
//! as in [`crate::abi`], with the cells of the half that looks. The compiler checks every field.

/// Defines a view of a structure of the ABI:
/// `view! { /// Doc. Name of Structure { field: Cell, } }`.
///
/// Each cell has to allow changes by others behind a shared reference.
#[macro_export]
macro_rules! view {
    ($(#[$doc:meta])* $name:ident of $abi:ty { $($field:ident: $cell:ty,)* }) => {
        $(#[$doc])*
        #[repr(C, align(64))]
        pub(crate) struct $name {
            $(pub(crate) $field: $cell,)*
        }

        const _: () = {
            const fn bytes<T, F>(_: fn(&T) -> &F) -> usize {
                size_of::<F>()
            }
            assert!(size_of::<$name>() == size_of::<$abi>());
            assert!(align_of::<$name>() == align_of::<$abi>());
            $(
                assert!(
                    core::mem::offset_of!($name, $field) == core::mem::offset_of!($abi, $field)
                );
                assert!(
                    bytes(|view: &$name| &view.$field) == bytes(|abi: &$abi| &abi.$field)
                );
            )*
        };
    };
}
