//! Layers of settings: what one place says of a group, and how a place that counts more lies over one that counts less.
//!
//! Flags lie over drop-in files, each drop-in over those before it, and all of them over the file.

use std::collections::BTreeMap;

/// A setting that is a map. As the kubelet's drop-ins (`mergeKubeletConfigurations` in `cmd/kubelet/app/server.go`) a
/// file adds to the map below it; as pflag's maps a flag replaces it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Table<K, V> {
    /// What it holds.
    pub(crate) entries: BTreeMap<K, V>,
    /// Nothing below it counts.
    pub(crate) whole: bool,
}

impl<K: Ord, V> Default for Table<K, V> {
    fn default() -> Self {
        Table { entries: BTreeMap::new(), whole: false }
    }
}

impl<K: Ord, V> Table<K, V> {
    /// This, over the other.
    pub(crate) fn over(above: Option<Table<K, V>>, below: Option<Table<K, V>>) -> Option<Table<K, V>> {
        match (above, below) {
            (Some(above), Some(below)) if !above.whole => {
                let Table { mut entries, whole } = below;
                entries.extend(above.entries);
                Some(Table { entries, whole })
            }
            (above, below) => above.or(below),
        }
    }
}

/// Makes the struct of what one place says of a group of settings (`None`: nothing), with `or` that lays it over another.
macro_rules! layer {
    (
        $(#[$meta:meta])*
        $name:ident { $($field:ident: $kind:ty,)* }
        tables { $($table:ident: $key:ty => $value:ty,)* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub(crate) struct $name {
            $(pub(crate) $field: Option<$kind>,)*
            $(pub(crate) $table: Option<$crate::config::layer::Table<$key, $value>>,)*
        }

        impl $name {
            /// This, and where it says nothing, the other.
            pub(crate) fn or(self, below: $name) -> $name {
                $name {
                    $($field: self.$field.or(below.$field),)*
                    $($table: $crate::config::layer::Table::over(self.$table, below.$table),)*
                }
            }
        }
    };
}

pub(super) use layer;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_add_to_maps_and_flags_replace_them() {
        let table =
            |pairs: &[(&'static str, i32)], whole| Some(Table { entries: pairs.iter().copied().collect(), whole });
        let below = table(&[("a", 1), ("b", 2)], false);
        assert_eq!(Table::over(table(&[("b", 3)], false), below.clone()), table(&[("a", 1), ("b", 3)], false));
        assert_eq!(Table::over(table(&[("b", 3)], true), below.clone()), table(&[("b", 3)], true));
        assert_eq!(Table::over(None, below.clone()), below);
    }
}
