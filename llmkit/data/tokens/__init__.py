"""Text, chats and records to token ids and back."""
