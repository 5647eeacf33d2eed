WITH offset_sequence AS (
    SELECT
        __topic,
        __partition,
        __offset,
        lagInFrame(toNullable(__offset)) OVER (
            PARTITION BY __topic, __partition
            ORDER BY __offset
        ) as prev_offset
    FROM your_kafka_data_source
    WHERE __timestamp > now() - INTERVAL 1 hour
)
SELECT
    __topic,
    __partition,
    prev_offset + 1 as expected_offset,
    __offset as actual_offset,
    __offset - prev_offset - 1 as gap_size
FROM offset_sequence
WHERE prev_offset IS NOT NULL
    AND __offset - prev_offset > 1
ORDER BY __topic, __partition, expected_offset
