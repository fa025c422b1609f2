"""A client in one page: `python tests/example_client.py HOST:PORT`. It needs grpc and the generated stubs, nothing else."""

import sys

import grpc

from recsys.recommender_pb2_grpc import RecommenderStub
from streaming.proto.recommender_pb2 import Event, Exposure, Feedback, Item, RecommendRequest, RecordEventsRequest, UpsertItemsRequest

with grpc.insecure_channel(sys.argv[1]) as channel:
    recommender = RecommenderStub(channel)
    films = [("Alien", "horror"), ("Heat", "crime"), ("Up", "family")]
    items = [Item(item_id=title.lower(), title=title, attributes={"genre": genre}) for title, genre in films]
    print("items accepted:", recommender.UpsertItems(UpsertItemsRequest(items=items), timeout=5).accepted)

    answer = recommender.Recommend(RecommendRequest(user_id="ann", slate_size=2, context={"surface": "home"}), timeout=5)
    for slot in answer.slots:
        print(f"{slot.item_id}  log-probability {slot.logprob:.3f}")

    token, name = answer.decision_token, answer.decision_id
    shown = Exposure(decision_token=token, slots=range(len(answer.slots)))
    clicked = Feedback(decision_token=token, slot=0, kind="click", value=1)
    events = [
        Event(event_id=f"{name}-shown", user_id="ann", exposure=shown),
        Event(event_id=f"{name}-click", user_id="ann", feedback=clicked),
    ]
    print("events accepted:", recommender.RecordEvents(RecordEventsRequest(events=events), timeout=5).accepted)
