//! Where a database is and how it is spoken to, read off its address: `mysql://user:password@host:port/database?ssl-mode=…`.
//!
//! An address holds a password: it is never shown as it was given, only as [`DatabaseAddress::shown`].

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use secrecy::SecretString;

use super::percent_decoded;

/// Whose language a database speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseKind {
    /// MariaDB as well.
    MySql,
    Postgres,
}

/// What is asked of the line to a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineSecurity {
    Plain,
    /// Encrypted where the server offers it, and nobody's certificate is looked at.
    IfOffered,
    /// Encrypted, and nobody's certificate is looked at.
    Encrypted,
    /// Encrypted by a certificate that a trusted authority signed, for whatever host.
    TrustedAuthority,
    /// Encrypted by a trusted certificate for the host that was asked for.
    Verified,
}

/// As PostgreSQL's and MySQL's own clients spell them.
const SECURITIES: [(&str, LineSecurity); 9] = [
    ("disable", LineSecurity::Plain),
    ("disabled", LineSecurity::Plain),
    ("prefer", LineSecurity::IfOffered),
    ("preferred", LineSecurity::IfOffered),
    ("require", LineSecurity::Encrypted),
    ("required", LineSecurity::Encrypted),
    ("verify-ca", LineSecurity::TrustedAuthority),
    ("verify-full", LineSecurity::Verified),
    ("verify-identity", LineSecurity::Verified),
];

/// An address taken apart.
#[derive(Clone)]
pub struct DatabaseAddress {
    pub kind: DatabaseKind,
    /// A name or an address, of IPv6 without brackets.
    pub host: String,
    pub port: u16,
    pub user: String,
    pub password: Option<SecretString>,
    pub database: String,
    /// Of PostgreSQL the folder of the socket, of MySQL the socket; in place of the host.
    pub socket: Option<PathBuf>,
    pub security: LineSecurity,
    /// Certificates (PEM) that are trusted beside the system's.
    pub authority: Option<PathBuf>,
    /// Our own certificate and its key (PEM), for servers that ask for one.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// Why a text is no address; neither text repeats what may be secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoAddress {
    pub message: String,
    pub hint: String,
}

const FORM: &str = "write mysql://user:${PASSWORD}@host/database or postgres://user:${PASSWORD}@host/database";

impl DatabaseAddress {
    /// Reads an address. A line that leaves this machine is verified unless the address says otherwise.
    ///
    /// The last `@` ends the password, so that one out of the environment may hold `/`, `?`, `#` and `@`; `%2F` and the like
    /// are what they stand for.
    ///
    /// # Errors
    ///
    /// [`NoAddress`].
    pub fn parse(text: &str) -> Result<Self, NoAddress> {
        let wrong = |message: &str| no_address(message, FORM);
        let (scheme, rest) = text.trim().split_once("://").ok_or_else(|| wrong("this is no address of a database"))?;
        let (kind, default_port) = match scheme.to_ascii_lowercase().as_str() {
            "mysql" | "mariadb" => (DatabaseKind::MySql, 3306),
            "postgres" | "postgresql" => (DatabaseKind::Postgres, 5432),
            _ => return Err(wrong("this kind of database cannot be read")),
        };
        let (login, place) = rest.rsplit_once('@').ok_or_else(|| wrong("the address names no user"))?;
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (login, None),
        };
        let (place, query) = place.split_once('?').unwrap_or((place, ""));
        let (host, database) = place.split_once('/').unwrap_or((place, ""));
        let (host, port) = host_and_port(host).ok_or_else(|| wrong("the port is no number"))?;
        if user.is_empty() {
            return Err(wrong("the address names no user"));
        }
        if database.is_empty() {
            return Err(wrong("the address names no database"));
        }
        let is_here = |host: &str| {
            host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        };
        let mut address = Self {
            kind,
            security: if is_here(host) { LineSecurity::IfOffered } else { LineSecurity::Verified },
            host: host.to_owned(),
            port: port.unwrap_or(default_port),
            user: percent_decoded(user),
            password: password.map(|password| SecretString::from(percent_decoded(password))),
            database: percent_decoded(database),
            socket: None,
            authority: None,
            client: None,
        };
        address.take_options(query)?;
        if address.host.is_empty() && address.socket.is_none() {
            return Err(wrong("the address names no host"));
        }
        Ok(address)
    }

    fn take_options(&mut self, query: &str) -> Result<(), NoAddress> {
        let (mut certificate, mut key, mut security) = (None, None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decoded(value);
            let path = || Some(PathBuf::from(&value));
            match name.to_ascii_lowercase().replace(['-', '_'], "").as_str() {
                "sslmode" => security = Some(security_of(&value)?),
                "sslrootcert" | "sslca" => self.authority = path(),
                "sslcert" => certificate = path(),
                "sslkey" => key = path(),
                "socket" => self.socket = path(),
                _ => {
                    // What stands there may be a piece of a password.
                    let hint = "accepted are sslmode (ssl-mode), sslrootcert (ssl-ca), sslcert, sslkey and socket";
                    return Err(no_address("a setting behind the `?` of the address is unknown", hint));
                }
            }
        }
        self.client = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(no_address("a certificate of our own needs its key", "give both sslcert and sslkey")),
        };
        if self.socket.is_some() {
            self.security = LineSecurity::Plain;
        }
        self.security = security.unwrap_or(self.security);
        Ok(())
    }

    /// The address without what is nobody's business.
    pub fn shown(&self) -> String {
        let scheme = match self.kind {
            DatabaseKind::MySql => "mysql",
            DatabaseKind::Postgres => "postgres",
        };
        match &self.socket {
            Some(socket) => format!("{scheme}://{}/{}", socket.display(), self.database),
            None if self.host.contains(':') => format!("{scheme}://[{}]:{}/{}", self.host, self.port, self.database),
            None => format!("{scheme}://{}:{}/{}", self.host, self.port, self.database),
        }
    }
}

impl fmt::Debug for DatabaseAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseAddress({})", self.shown())
    }
}

fn no_address(message: &str, hint: &str) -> NoAddress {
    NoAddress { message: message.to_owned(), hint: hint.to_owned() }
}

fn security_of(value: &str) -> Result<LineSecurity, NoAddress> {
    let folded = value.to_ascii_lowercase().replace('_', "-");
    let known = SECURITIES.iter().find(|(word, _)| *word == folded);
    known.map(|(_, security)| *security).ok_or_else(|| {
        let hint = "accepted are disable, prefer, require, verify-ca and verify-full (of MySQL VERIFY_IDENTITY)";
        no_address("the sslmode of the address is none", hint)
    })
}

fn host_and_port(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    Some((host, port.map(str::parse).transpose().ok()?))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn an_address_is_taken_apart_and_never_shows_its_password() {
        let address = DatabaseAddress::parse("mysql://lian%40x:p@s/s#w?o%72d@db.example.com:3307/mall").unwrap();
        assert_eq!((address.kind, address.host.as_str(), address.port), (DatabaseKind::MySql, "db.example.com", 3307));
        assert_eq!((address.user.as_str(), address.database.as_str()), ("lian@x", "mall"));
        assert_eq!(address.password.as_ref().unwrap().expose_secret(), "p@s/s#w?ord");
        assert_eq!(format!("{address:?}"), "DatabaseAddress(mysql://db.example.com:3307/mall)");
        let address = DatabaseAddress::parse("postgresql://me@[fd00::1]/mall").unwrap();
        assert_eq!((address.host.as_str(), address.port, address.password.is_none()), ("fd00::1", 5432, true));
        assert_eq!(address.shown(), "postgres://[fd00::1]:5432/mall");
    }

    #[test]
    fn a_line_that_leaves_the_machine_is_verified_unless_the_address_says_otherwise() {
        for (text, security) in [
            ("mysql://me@db/x", LineSecurity::Verified),
            ("postgres://me@10.0.0.7/x", LineSecurity::Verified),
            ("postgres://me@localhost/x", LineSecurity::IfOffered),
            ("mysql://me@127.0.0.1/x", LineSecurity::IfOffered),
            ("mysql://me@[::1]/x", LineSecurity::IfOffered),
            ("postgres://me@/x?socket=/run/postgresql", LineSecurity::Plain),
            ("mysql://me@db/x?ssl-mode=VERIFY_CA", LineSecurity::TrustedAuthority),
            ("mysql://me@localhost/x?ssl-mode=VERIFY_IDENTITY&ssl-ca=ca.pem", LineSecurity::Verified),
            ("postgres://me@db/x?sslmode=disable", LineSecurity::Plain),
        ] {
            assert_eq!(DatabaseAddress::parse(text).unwrap().security, security, "{text}");
        }
    }

    #[test]
    fn what_is_no_address_says_why_without_repeating_it() {
        for (text, said) in [
            ("localhost/hunter2", "no address"),
            ("oracle://me:hunter2@db/x", "kind of database"),
            ("mysql://db/hunter2", "no user"),
            ("mysql://me:hunter2@db", "no database"),
            ("mysql://me:hunter2@/x", "no host"),
            ("mysql://me:hunter2@db:port/x", "port"),
            ("postgres://me:hunter2@db/x?sslmode=hunter2", "sslmode"),
            ("postgres://me:hunter2@db/x?hunter2=1", "unknown"),
            ("postgres://me:hunter2@db/x?sslcert=a.pem", "needs its key"),
        ] {
            let refused = DatabaseAddress::parse(text).unwrap_err();
            assert!(refused.message.contains(said), "{text}: {refused:?}");
            assert!(!format!("{refused:?}").contains("hunter2"), "{refused:?}");
        }
    }
}
