//! The streaming lists of CRI 1.36 (KEP 5825): each item once, in batches that no message limit cuts.

use tonic::Status;

/// Items in one response.
const BATCH: usize = 100;

/// Responses of one list. None when the list is empty.
pub(super) type Batches<T> = tokio_stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

/// Puts `items` into responses made by `wrap`.
pub(super) fn batches<I, T>(items: Vec<I>, wrap: impl Fn(Vec<I>) -> T) -> Batches<T> {
    let mut responses = Vec::with_capacity(items.len().div_ceil(BATCH));
    let mut left = items.into_iter();
    loop {
        let batch: Vec<I> = left.by_ref().take(BATCH).collect();
        if batch.is_empty() {
            return tokio_stream::iter(responses);
        }
        responses.push(Ok(wrap(batch)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt;

    #[tokio::test]
    async fn every_item_is_in_one_batch() {
        for count in [0, 1, BATCH, BATCH + 1, 3 * BATCH] {
            let lists: Vec<Vec<usize>> =
                batches((0..count).collect(), |items| items).map(Result::unwrap).collect().await;
            assert!(lists.iter().all(|list| (1..=BATCH).contains(&list.len())));
            assert_eq!(lists.concat(), (0..count).collect::<Vec<_>>());
        }
    }
}
