SELECT
    __topic,
    __partition,
    min(__offset) as min_offset,
    max(__offset) as max_offset,
    count() as message_count,
    (max(__offset) - min(__offset) + 1) - count() as missing_messages
FROM your_kafka_data_source
WHERE __timestamp > now() - INTERVAL 1 hour
GROUP BY __topic, __partition
HAVING missing_messages > 0
