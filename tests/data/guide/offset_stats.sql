SELECT
    toStartOfMinute(__timestamp) as minute,
    __topic,
    __partition,
    min(__offset) as min_offset,
    max(__offset) as max_offset,
    count() as messages_received,
    max(__offset) - min(__offset) + 1 as expected_messages,
    (max(__offset) - min(__offset) + 1) - count() as missing_messages
FROM your_kafka_data_source
WHERE __timestamp > now() - INTERVAL 1 hour
GROUP BY minute, __topic, __partition
ORDER BY minute DESC, __topic, __partition
