package example;

import java.lang.management.ManagementFactory;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.UUID;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * What one sink has received, told to gapstream: docs/observing.md has the form and the rules.
 *
 * <p>Call {@link #received} and {@link #quarantined} for each record, then {@link #send} before the consumer commits. For one
 * thread.
 */
final class Reports implements AutoCloseable {
  /** Runs in one observation: at most 43 bytes each, far below the megabyte that brokers take. */
  private static final int RUNS_MAX = 1_000;

  /** Characters of a reason: gapstream takes 1,000, and a sentence will do. */
  private static final int REASON_MAX = 256;

  private final KafkaProducer<byte[], byte[]> producer;
  private final String sink;
  private final String topicPrefix;

  /** New for each start: gapstream takes a number at or below the last one of its source for a repeat. */
  private final String source = ManagementFactory.getRuntimeMXBean().getName() + "-" + UUID.randomUUID();

  private long sequence = 0;

  /** Status and reason, as JSON, to the runs of offsets, both ends included. */
  private final Map<TopicPartition, Map<String, List<long[]>>> gathered = new HashMap<>();

  Reports(String bootstrapServers, String sink, String appId) {
    Properties conf = new Properties();
    conf.put("bootstrap.servers", bootstrapServers);
    conf.put("acks", "all"); // an observation that is acknowledged must be there
    conf.put("enable.idempotence", "true"); // once, and in order
    conf.put("compression.type", "lz4");
    this.producer = new KafkaProducer<>(conf, new ByteArraySerializer(), new ByteArraySerializer());
    this.sink = sink;
    this.topicPrefix = appId + ".observations.";
  }

  /** The record was processed. */
  void received(TopicPartition partition, long offset) {
    add(partition, "\"status\":\"received\"", offset);
  }

  /** The record was put aside for this reason: explained, not missing. */
  void quarantined(TopicPartition partition, long offset, String reason) {
    add(partition, "\"status\":\"quarantined\",\"reason\":" + quote(reason.substring(0, Math.min(reason.length(), REASON_MAX))), offset);
  }

  private void add(TopicPartition partition, String label, long offset) {
    List<long[]> runs =
        gathered.computeIfAbsent(partition, key -> new LinkedHashMap<>()).computeIfAbsent(label, key -> new ArrayList<>());
    long[] last = runs.isEmpty() ? null : runs.get(runs.size() - 1);
    if (last != null && last[1] + 1 == offset) {
      last[1] = offset;
    } else {
      runs.add(new long[] {offset, offset});
    }
  }

  /**
   * Write what was gathered, and wait until Kafka has it. What can't be written is an exception: then don't commit, so that
   * whoever is handed the records next reports them.
   */
  void send() throws ExecutionException, InterruptedException {
    List<Future<?>> sent = new ArrayList<>();
    gathered.forEach(
        (partition, labels) ->
            labels.forEach(
                (label, runs) -> {
                  for (int first = 0; first < runs.size(); first += RUNS_MAX) {
                    String json = observation(partition, label, runs.subList(first, Math.min(first + RUNS_MAX, runs.size())));
                    // The same partition number as the record: there is where gapstream looks.
                    sent.add(
                        producer.send(
                            new ProducerRecord<>(
                                topicPrefix + partition.topic(), partition.partition(), null, json.getBytes(StandardCharsets.UTF_8))));
                  }
                }));
    gathered.clear();
    for (Future<?> one : sent) {
      one.get();
    }
  }

  private String observation(TopicPartition partition, String label, List<long[]> runs) {
    StringBuilder json = new StringBuilder("{\"v\":1,\"sink\":").append(quote(sink));
    json.append(",\"topic\":").append(quote(partition.topic())).append(",\"partition\":").append(partition.partition());
    json.append(",\"runs\":[");
    for (int i = 0; i < runs.size(); i++) {
      json.append(i == 0 ? "[" : ",[").append(runs.get(i)[0]).append(',').append(runs.get(i)[1]).append(']');
    }
    json.append("],").append(label).append(",\"source\":").append(quote(source));
    return json.append(",\"sequence\":").append(++sequence).append('}').toString();
  }

  private static String quote(String text) {
    StringBuilder json = new StringBuilder("\"");
    for (char c : text.toCharArray()) {
      if (c == '"' || c == '\\') {
        json.append('\\').append(c);
      } else if (c < ' ') {
        json.append(String.format("\\u%04x", (int) c));
      } else {
        json.append(c);
      }
    }
    return json.append('"').toString();
  }

  @Override
  public void close() {
    producer.close();
  }
}
