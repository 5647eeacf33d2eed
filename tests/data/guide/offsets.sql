SELECT
    __topic,
    __partition,
    __offset,
    __timestamp
FROM your_kafka_data_source
WHERE __timestamp > now() - INTERVAL 1 hour
ORDER BY __partition, __offset
