package store

import (
	"time"

	"millrace/shared/event"
)

// Command is where a command stands, or what became of it. It is kept for a week.
type Command struct {
	ID string `json:"command_id"`
	// Content is a digest of what was asked for: another command under the same id is a mistake.
	Content string `json:"content"`
	// Message is when the broker stored the message that is being carried out, or was; a redelivery is the same message.
	Message  time.Time `json:"message"`
	TakenAt  time.Time `json:"taken_at"`
	Attempts int       `json:"attempts,omitempty"` // that failed for a reason that may pass
	// Outcome is nil while the command is being carried out.
	Outcome *event.CommandEvent `json:"outcome,omitempty"`
	Index   string              `json:"index_id,omitempty"` // that the outcome is told of
	EndedAt time.Time           `json:"ended_at,omitzero"`
	Dead    string              `json:"dead,omitempty"` // why the message goes to the dead stream
}

// Done reports whether the command was carried out, so that it must not be again.
func (c Command) Done() bool { return c.Outcome != nil && c.Outcome.Status < 400 }
