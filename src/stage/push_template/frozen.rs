//! The frozen messages of a push, read back in the order of the set, a few thousand in memory.

use tokio::sync::mpsc;

use super::Pushing;
use crate::domain::{OpenId, Rows, UnionId, Values};
use crate::engine::{Engine, Params, TableSource};
use crate::stage::StageError;

/// One message as frozen.
#[derive(Debug)]
pub struct Message {
    pub seq: u64,
    pub openid: OpenId,
    pub unionid: Option<UnionId>,
    pub body: Vec<u8>,
    /// Which rule it breaks; such a message is never sent.
    pub invalid: Option<String>,
}

/// Reads frozen messages in the order of the set, a few thousand in memory.
pub struct MessageReader {
    batches: mpsc::Receiver<Result<Vec<Message>, StageError>>,
    left: std::collections::VecDeque<Message>,
}

impl MessageReader {
    /// Messages after the last one claimed.
    ///
    /// # Errors
    ///
    /// [`StageError::Rule`] when the messages were never frozen.
    pub fn open(pushing: &Pushing<'_>) -> Result<Self, StageError> {
        let (send, batches) = mpsc::channel(4);
        let engine = pushing.cx.hands.sparing_engine().single_threaded();
        let file = messages_file(pushing)?;
        let sql = format!("{SELECT} where seq > {}", pushing.push.claimed_to);
        // The thread ends with the file, or when this reader is dropped and the channel closes.
        tokio::task::spawn_blocking(move || {
            let ended = read(&engine, file, &sql, |messages| send.blocking_send(Ok(messages)).is_ok());
            if let Err(error) = ended {
                let _ = send.blocking_send(Err(error));
            }
        });
        Ok(Self { batches, left: std::collections::VecDeque::new() })
    }

    /// No messages: nobody is to be claimed any more.
    pub fn empty() -> Self {
        let (_, batches) = mpsc::channel(1);
        Self { batches, left: std::collections::VecDeque::new() }
    }

    /// The next messages, at most `most`; none at the end.
    ///
    /// # Errors
    ///
    /// [`StageError`] when the file cannot be read.
    pub async fn next(&mut self, most: usize) -> Result<Vec<Message>, StageError> {
        while self.left.len() < most {
            match self.batches.recv().await {
                Some(batch) => self.left.extend(batch?),
                None => break,
            }
        }
        let most = most.min(self.left.len());
        Ok(self.left.drain(..most).collect())
    }

    /// The messages of given seqs, in their order.
    ///
    /// # Errors
    ///
    /// [`StageError`] when the file cannot be read.
    pub async fn of_seqs(pushing: &Pushing<'_>, seqs: &[u64]) -> Result<Vec<Message>, StageError> {
        let engine = pushing.cx.hands.sparing_engine().single_threaded();
        let file = messages_file(pushing)?;
        let list: Vec<String> = seqs.iter().map(ToString::to_string).collect();
        let sql = format!("{SELECT} where seq in ({}) order by seq", list.join(", "));
        tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            read(&engine, file, &sql, |messages| {
                all.extend(messages);
                true
            })?;
            Ok(all)
        })
        .await?
    }
}

const SELECT: &str = "select seq, openid, unionid, body, invalid from messages";

/// The first `n` messages of a file. Blocking.
pub fn first(engine: &Engine, file: std::path::PathBuf, n: u32) -> Result<Vec<Message>, StageError> {
    let mut all = Vec::new();
    read(engine, file, &format!("{SELECT} order by seq limit {n}"), |messages| {
        all.extend(messages);
        true
    })?;
    Ok(all)
}

fn messages_file(pushing: &Pushing<'_>) -> Result<std::path::PathBuf, StageError> {
    let path = pushing.push.messages_path.as_deref();
    let path = path.ok_or_else(|| StageError::Rule("the messages were not frozen".to_owned()))?;
    Ok(pushing.cx.hands.lake.absolute(path))
}

fn read(
    engine: &Engine,
    file: std::path::PathBuf,
    sql: &str,
    mut sink: impl FnMut(Vec<Message>) -> bool,
) -> Result<(), StageError> {
    let session = engine.session()?;
    session.add_table(&TableSource {
        name: "messages".to_owned(),
        columns: Vec::new(),
        parts: vec![file],
        sql: None,
        are_alike: false,
    })?;
    session.stream::<StageError>(sql, &Params::new(), |rows| Ok(sink(messages(rows))))
}

fn messages(rows: Rows) -> Vec<Message> {
    let mut columns = rows.columns.into_iter().map(|(_, values)| values);
    let (
        Some(Values::Integer(seqs)),
        Some(Values::Text(openids)),
        Some(Values::Text(unionids)),
        Some(Values::Text(bodies)),
        Some(Values::Text(invalids)),
    ) = (columns.next(), columns.next(), columns.next(), columns.next(), columns.next())
    else {
        return Vec::new();
    };
    let people = seqs.into_iter().zip(openids).zip(unionids).zip(bodies).zip(invalids);
    people
        .map(|((((seq, openid), unionid), body), invalid)| Message {
            seq: u64::try_from(seq.unwrap_or_default()).unwrap_or_default(),
            openid: OpenId::new(openid.unwrap_or_default()),
            unionid: unionid.map(UnionId::new),
            body: body.unwrap_or_default().into_bytes(),
            invalid,
        })
        .collect()
}
