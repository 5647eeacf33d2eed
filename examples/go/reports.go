package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	// runsMax in one observation: at most 43 bytes each, far below the megabyte that brokers take.
	runsMax = 1000
	// reasonMax bytes of a reason: gapstream takes 1,000 characters, and a sentence will do.
	reasonMax = 256
)

// observation is what gapstream reads: docs/observing.md has the form and the rules.
type observation struct {
	V         int        `json:"v"`
	Sink      string     `json:"sink"`
	Topic     string     `json:"topic"`
	Partition int32      `json:"partition"`
	Runs      [][2]int64 `json:"runs"` // both ends included
	Status    string     `json:"status"`
	Reason    string     `json:"reason,omitempty"`
	Source    string     `json:"source"`
	Sequence  int64      `json:"sequence"`
}

// label is what runs of one observation have in common.
type label struct {
	topic     string
	partition int32
	status    string
	reason    string
}

// reports tells what one sink has received: call received and quarantined for each record, then send before the consumer
// commits. For one goroutine.
type reports struct {
	client *kgo.Client
	sink   string
	prefix string
	// New for each start: gapstream takes a number at or below the last one of its source for a repeat.
	source   string
	sequence int64
	gathered map[label][][2]int64
}

func newReports(client *kgo.Client, sink, appID string) *reports {
	host, _ := os.Hostname()
	source := fmt.Sprintf("%s-%d-%s", host, os.Getpid(), rand.Text())
	return &reports{client: client, sink: sink, prefix: appID + ".observations.", source: source, gathered: map[label][][2]int64{}}
}

// received: the record was processed.
func (r *reports) received(record *kgo.Record) {
	r.add(label{record.Topic, record.Partition, "received", ""}, record.Offset)
}

// quarantined: the record was put aside for this reason; explained, not missing.
func (r *reports) quarantined(record *kgo.Record, reason string) {
	reason = strings.ToValidUTF8(reason[:min(len(reason), reasonMax)], "")
	r.add(label{record.Topic, record.Partition, "quarantined", reason}, record.Offset)
}

func (r *reports) add(key label, offset int64) {
	runs := r.gathered[key]
	if last := len(runs) - 1; last >= 0 && runs[last][1]+1 == offset {
		runs[last][1] = offset
		return
	}
	r.gathered[key] = append(runs, [2]int64{offset, offset})
}

// send writes what was gathered, and waits until Kafka has it. After an error don't commit, so that whoever is handed the
// records next reports them.
func (r *reports) send(ctx context.Context) error {
	var records []*kgo.Record
	for key, runs := range r.gathered {
		for len(runs) > 0 {
			part := runs[:min(len(runs), runsMax)]
			runs = runs[len(part):]
			r.sequence++
			value, err := json.Marshal(observation{
				V: 1, Sink: r.sink, Topic: key.topic, Partition: key.partition, Runs: part,
				Status: key.status, Reason: key.reason, Source: r.source, Sequence: r.sequence,
			})
			if err != nil {
				return err
			}
			// The same partition number as the record: there is where gapstream looks.
			records = append(records, &kgo.Record{Topic: r.prefix + key.topic, Partition: key.partition, Value: value})
		}
	}
	clear(r.gathered)
	return r.client.ProduceSync(ctx, records...).FirstErr()
}
