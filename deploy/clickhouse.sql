-- Where a row came from stands beside the row: that is all that gapstream needs.
CREATE TABLE IF NOT EXISTS default.orders
(
    __topic LowCardinality(String),
    __partition Int32,
    __offset Int64,
    __timestamp DateTime64(3, 'UTC'),
    order_id UInt64,
    amount_cents UInt32
)
ENGINE = MergeTree
ORDER BY (__topic, __partition, __offset);
