package example;

import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.List;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.WakeupException;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/** Consumes a topic, and tells gapstream what it has received: {@code run BOOTSTRAP_SERVERS TOPIC SINK [APP_ID]}. */
public final class ReportingConsumer {
  private ReportingConsumer() {}

  public static void main(String[] args) throws Exception {
    if (args.length < 3 || args.length > 4) {
      System.err.println("usage: run BOOTSTRAP_SERVERS TOPIC SINK [APP_ID]");
      System.exit(2);
    }
    Properties conf = new Properties();
    conf.put("bootstrap.servers", args[0]);
    conf.put("group.id", args[2]);
    conf.put("enable.auto.commit", "false"); // commit after processing and reporting
    conf.put("auto.offset.reset", "earliest");
    conf.put("isolation.level", "read_committed"); // as gapstream reads the topic
    KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(conf, new ByteArrayDeserializer(), new ByteArrayDeserializer());
    Thread main = Thread.currentThread();
    Runtime.getRuntime().addShutdownHook(new Thread(() -> stop(consumer, main)));
    try (consumer;
        Reports reports = new Reports(args[0], args[2], args.length == 4 ? args[3] : "gapstream")) {
      consumer.subscribe(List.of(args[1]));
      while (true) {
        // Everything polled is processed, reported and committed before the next poll, where partitions may be taken away.
        ConsumerRecords<byte[], byte[]> records = consumer.poll(Duration.ofSeconds(1));
        for (ConsumerRecord<byte[], byte[]> record : records) {
          take(record, reports);
        }
        reports.send();
        if (!records.isEmpty()) {
          consumer.commitSync();
        }
      }
    } catch (WakeupException stopped) {
      System.err.println("stopped");
    }
  }

  private static void take(ConsumerRecord<byte[], byte[]> record, Reports reports) {
    TopicPartition partition = new TopicPartition(record.topic(), record.partition());
    String value = record.value() == null ? "" : new String(record.value(), StandardCharsets.UTF_8);
    if (value.equals("lose me")) {
      return; // Stands for the defect that gapstream finds: a record is gone, nothing failed, and its offset is committed.
    }
    try {
      process(value);
      reports.received(partition, record.offset());
    } catch (IllegalArgumentException unusable) {
      // Keep the record somewhere, a dead-letter topic for instance; then it is explained.
      reports.quarantined(partition, record.offset(), unusable.toString());
    }
  }

  /** Here the work is done. Whatever may go away is tried again, or stops the program: then the record comes again. */
  private static void process(String value) {
    if (value.equals("poison")) {
      throw new IllegalArgumentException("not usable: \"" + value + "\"");
    }
  }

  private static void stop(KafkaConsumer<byte[], byte[]> consumer, Thread main) {
    consumer.wakeup();
    try {
      main.join(8_000);
    } catch (InterruptedException ended) {
      Thread.currentThread().interrupt();
    }
  }
}
