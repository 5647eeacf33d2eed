// Consumes a topic, and tells gapstream what it has received: run BOOTSTRAP_SERVERS TOPIC SINK [APP_ID]
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/twmb/franz-go/pkg/kgo"
)

func main() {
	if len(os.Args) < 4 || len(os.Args) > 5 {
		fmt.Fprintln(os.Stderr, "usage: run BOOTSTRAP_SERVERS TOPIC SINK [APP_ID]")
		os.Exit(2)
	}
	appID := "gapstream"
	if len(os.Args) == 5 {
		appID = os.Args[4]
	}
	if err := consume(strings.Split(os.Args[1], ","), os.Args[2], os.Args[3], appID); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stderr, "stopped")
}

func consume(brokers []string, topic, sink, appID string) error {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(brokers...),
		kgo.ConsumerGroup(sink),
		kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), // as gapstream reads the topic
		kgo.DisableAutoCommit(),                      // commit after processing and reporting
		kgo.BlockRebalanceOnPoll(),                   // no partition is taken away in between
		// Observations name their partition. They are idempotent and acknowledged by all in-sync replicas by default.
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
	)
	if err != nil {
		return err
	}
	defer client.CloseAllowingRebalance()
	asked, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	told := newReports(client, sink, appID)
	for asked.Err() == nil {
		fetches := client.PollRecords(asked, 10_000)
		fetches.EachError(func(topic string, partition int32, err error) {
			if !errors.Is(err, context.Canceled) {
				fmt.Fprintf(os.Stderr, "%s/%d: %v\n", topic, partition, err) // the client tries again
			}
		})
		fetches.EachRecord(func(record *kgo.Record) { take(record, told) })
		if err := told.send(context.Background()); err != nil {
			return fmt.Errorf("not reported, so not committed: %w", err)
		}
		if err := client.CommitUncommittedOffsets(context.Background()); err != nil {
			return err
		}
		client.AllowRebalance()
	}
	return nil
}

func take(record *kgo.Record, told *reports) {
	if string(record.Value) == "lose me" {
		return // Stands for the defect that gapstream finds: a record is gone, nothing failed, and its offset is committed.
	}
	if err := process(record); err != nil {
		// Keep the record somewhere, a dead-letter topic for instance; then it is explained.
		told.quarantined(record, err.Error())
		return
	}
	told.received(record)
}

// process does the work. Whatever may go away is tried again, or stops the program: then the record comes again.
func process(record *kgo.Record) error {
	if string(record.Value) == "poison" {
		return fmt.Errorf("not usable: %q", record.Value)
	}
	return nil
}
