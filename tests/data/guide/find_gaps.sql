WITH offset_data AS (
    SELECT
        __topic,
        __partition,
        __offset,
        lagInFrame(toNullable(__offset)) OVER (
            PARTITION BY __topic, __partition
            ORDER BY __offset
        ) as prev_offset,
        __timestamp
    FROM your_kafka_data_source
    WHERE __timestamp > now() - INTERVAL 15 minute
)
SELECT
    __topic,
    __partition,
    prev_offset + 1 as missing_offset_start,
    __offset - 1 as missing_offset_end,
    __offset - prev_offset - 1 as gap_size,
    __timestamp as detected_at
FROM offset_data
WHERE prev_offset IS NOT NULL
    AND __offset - prev_offset > 1
ORDER BY __topic, __partition, missing_offset_start
