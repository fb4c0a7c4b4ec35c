//! The engines' usual ports.

use crate::model::Engine;

/// In the order in which they count where a container exposes several.
const PORTS: [(Engine, u16); 4] = [
    (Engine::PostgreSql, 5432),
    (Engine::MySql, 3306),
    (Engine::MongoDb, 27017),
    (Engine::Redis, 6379),
];

/// The engine behind these TCP ports, if one is the usual port of any.
pub fn engine(ports: impl Iterator<Item = u16> + Clone) -> Option<Engine> {
    PORTS.iter().find(|(_, port)| ports.clone().any(|p| p == *port)).map(|(engine, _)| *engine)
}

/// An engine's usual port; 0 for one without.
pub fn default_port(engine: Engine) -> u16 {
    let engine = if engine == Engine::MariaDb { Engine::MySql } else { engine };
    PORTS.iter().find(|(known, _)| *known == engine).map_or(0, |(_, port)| *port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_ports() {
        let found = |ports: &[u16]| engine(ports.iter().copied());
        assert_eq!(found(&[80, 6379]), Some(Engine::Redis));
        assert_eq!(found(&[6379, 5432]), Some(Engine::PostgreSql));
        assert_eq!(found(&[33060, 80]), None);
        assert_eq!(found(&[]), None);
        assert_eq!(default_port(Engine::MariaDb), 3306);
        assert_eq!(default_port(Engine::Sqlite), 0);
    }
}
