WITH check_missing_offsets AS (
    SELECT
        __topic,
        __partition,
        min(__offset) as min_offset,
        max(__offset) as max_offset,
        count() as message_count,
        (max(__offset) - min(__offset) + 1) - count() as missing_messages,
        min(__timestamp) as first_message_time,
        max(__timestamp) as last_message_time
    FROM your_kafka_data_source
    WHERE __timestamp > now() - INTERVAL 15 minute
    GROUP BY __topic, __partition
    HAVING missing_messages > 0
)
SELECT
    __topic,
    __partition,
    missing_messages,
    min_offset,
    max_offset,
    message_count,
    first_message_time,
    last_message_time,
    now() as alert_time
FROM check_missing_offsets
ORDER BY missing_messages DESC
