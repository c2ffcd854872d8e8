//! Whom a night could not tell of though it asked: their batch was refused or could not be believed, and no call was left to
//! ask for them anew. They are remembered in the pieces that their batch was cut into, and go first on the next night, so that
//! an openid that spoils its batch stands alone after a few nights, and the others of the batch have their answer.

use crate::domain::{OpenId, Values};
use crate::engine::{Params, Session, text};
use crate::stage::StageError;

/// People in a piece of those who were to be asked one by one: most of the pieces are sound, and spare their people that.
const PIECE: usize = 20;

/// What is remembered of people who are owed another call: `cut`, in the batches that they were to be asked in next;
/// `suspects`, batches that look shifted; `loose`, people who were to be asked one by one.
pub(super) fn remembered(cut: Vec<Vec<OpenId>>, suspects: &[Vec<OpenId>], loose: &[OpenId]) -> Vec<Vec<OpenId>> {
    let (single, mut pieces): (Vec<_>, Vec<_>) = cut.into_iter().partition(|piece| piece.len() == 1);
    // More than two are not the last step of a search.
    if single.len() > 2 {
        let single: Vec<OpenId> = single.into_iter().flatten().collect();
        pieces.extend(chunks(&single, PIECE));
    } else {
        pieces.extend(single);
    }
    // Always smaller than they were: that comes to an end though no call is ever left to look at them.
    pieces.extend(suspects.iter().flat_map(|batch| chunks(batch, batch.len().div_ceil(2).clamp(1, PIECE))));
    pieces.extend(chunks(loose, PIECE));
    pieces
}

fn chunks(people: &[OpenId], size: usize) -> impl Iterator<Item = Vec<OpenId>> {
    people.chunks(size).map(<[OpenId]>::to_vec)
}

/// Those of the remembered who follow still and were not answered since, as the table `in_doubt` and piece by piece.
pub(super) fn still_needed(session: &Session, in_doubt: &[Vec<OpenId>]) -> Result<Vec<Vec<OpenId>>, StageError> {
    const ROWS: usize = 500;
    if in_doubt.is_empty() {
        return Ok(Vec::new());
    }
    session.run("create temp table remembered (openid varchar, piece bigint)")?;
    let people =
        in_doubt.iter().enumerate().flat_map(|(piece, people)| people.iter().map(move |openid| (piece, openid)));
    let rows: Vec<String> = people.map(|(piece, openid)| format!("({}, {piece})", text(openid.as_str()))).collect();
    for rows in rows.chunks(ROWS) {
        session.run(&format!("insert into remembered values {}", rows.join(", ")))?;
    }
    session.run(STILL_NEEDED)?;
    let mut pieces = vec![Vec::new(); in_doubt.len()];
    session.stream::<StageError>("select openid, piece from in_doubt order by openid", &Params::new(), |rows| {
        let [(_, Values::Text(openids)), (_, Values::Integer(numbers))] = rows.columns.as_slice() else {
            return Ok(false);
        };
        for (openid, piece) in openids.iter().zip(numbers) {
            let piece = piece.and_then(|piece| usize::try_from(piece).ok()).and_then(|piece| pieces.get_mut(piece));
            if let (Some(openid), Some(piece)) = (openid, piece) {
                piece.push(OpenId::new(openid));
            }
        }
        Ok(true)
    })?;
    pieces.retain(|piece| !piece.is_empty());
    Ok(pieces)
}

/// A SELECT of openids without those of the pieces.
pub(super) fn without(sql: &str, pieces: &[Vec<OpenId>]) -> String {
    if pieces.is_empty() {
        return sql.to_owned();
    }
    format!(
        "select due.openid from ({sql}) as due where not exists (select 1 from in_doubt where in_doubt.openid = due.openid)"
    )
}

/// The newest answer of somebody whose batch could not be believed says that nothing is known.
const STILL_NEEDED: &str = "
create temp table in_doubt as
select remembered.openid, min(remembered.piece) as piece
from remembered
join followers on followers.openid = remembered.openid
left join (
    select openid, arg_max(coalesce(unionid_missing, ''), fetched_at) as missing
    from fetched where openid in (select openid from remembered) group by openid
) as answered on answered.openid = remembered.openid
where followers.active and coalesce(answered.missing, 'quarantined') = 'quarantined'
group by remembered.openid";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Engine;

    fn people(numbers: std::ops::Range<usize>) -> Vec<OpenId> {
        numbers.map(|number| OpenId::new(format!("o{number}"))).collect()
    }

    fn sizes(pieces: &[Vec<OpenId>]) -> Vec<usize> {
        pieces.iter().map(Vec::len).collect()
    }

    #[test]
    fn pieces_stay_as_they_are_and_people_who_were_to_be_asked_singly_make_small_batches() {
        let singles = |count| people(0..count).into_iter().map(|one| vec![one]).collect();
        assert_eq!(sizes(&remembered(vec![people(0..50), people(50..100)], &[], &[])), [50, 50]);
        assert_eq!(sizes(&remembered(singles(2), &[], &[])), [1, 1]);
        assert_eq!(sizes(&remembered(singles(45), &[], &[])), [20, 20, 5]);
        assert_eq!(sizes(&remembered(Vec::new(), &[], &people(0..50))), [20, 20, 10]);
    }

    #[test]
    fn batches_that_look_shifted_become_smaller_every_night() {
        let mut suspects = vec![people(0..100), people(100..200)];
        for sizes_then in [&[20; 10][..], &[10; 20], &[5; 40]] {
            suspects = remembered(Vec::new(), &suspects, &[]);
            assert_eq!(sizes(&suspects), sizes_then);
        }
        assert_eq!(sizes(&remembered(Vec::new(), &[people(0..5)], &[])), [3, 2]);
        assert_eq!(sizes(&remembered(Vec::new(), &[people(0..2)], &[])), [1, 1]);
    }

    #[test]
    fn who_left_or_was_answered_since_is_needed_no_longer() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Engine::new("1GB", 1, folder.path(), chrono_tz::UTC);
        let session = engine.session().unwrap();
        session
            .run(
                "create table followers as select 'o' || i as openid, i <> 1 as active from range(10) as t(i);
                 create table fetched as
                 select * from (values ('o2', null, make_timestamp(1)), ('o3', null, make_timestamp(1)),
                     ('o3', 'quarantined', make_timestamp(2)), ('o4', 'quarantined', make_timestamp(1)),
                     ('o4', 'error', make_timestamp(2))) as t(openid, unionid_missing, fetched_at);",
            )
            .unwrap();
        let pieces = still_needed(&session, &[people(0..3), people(3..5), people(9..12)]).unwrap();
        assert_eq!(pieces, [people(0..1), people(3..4), people(9..10)]);
        let rest = without("select openid from followers", &pieces);
        assert_eq!(session.count(&format!("select count(*) from ({rest})"), &Params::new()).unwrap(), 7);
        assert!(still_needed(&engine.session().unwrap(), &[]).unwrap().is_empty());
    }
}
